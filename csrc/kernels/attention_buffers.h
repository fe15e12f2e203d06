// How `attend` divides its scratch memory, and how many floats it wants.
#pragma once
#include "../operators.h"

namespace inferloom {
namespace {

constexpr int kKeyBlock = 128;  // positions whose scores are softened together; blocks begin at multiples of it
constexpr int kBlockPages = kKeyBlock / kPageSize;
constexpr int kBlockVectors = kKeyBlock / 16;

// Queries are the rows of a unit times the heads that share its keys: query row · group + head. Every array holds a
// multiple of 16 floats.
struct AttentionBuffers {
  uint16_t* queries;        // [queries][D] bfloat16
  float* scores;            // [queries][kKeyBlock]
  uint16_t* probabilities;  // [queries][kKeyBlock] bfloat16
  float* sums;              // [queries][D], of the split at hand
  float* totals;            // [queries][D], of the splits before
  float* maxima;            // [queries], of sums; weights likewise
  float* weights;
  float* total_maxima;
  float* total_weights;
  float* factors;           // [queries], of the sums when the maximum has grown
  float* tops;              // [queries], the block's largest score, and
  float* added;             // its sum of probabilities
  float* limits;            // [kKeyBlock], +∞ where a position is seen by a row, −∞ where it is not
  uint16_t* last_values;    // [D][2]: the last position alone, where no other shares its pair
  uint16_t* expanded;       // [kBlockPages][keys, values][32 · D] bfloat16 of int8 pages

  static constexpr int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

  // Returns the floats used, dividing `memory` unless it is null.
  static int64_t divide(float* memory, int64_t queries, int64_t dim, AttentionBuffers* buffers) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* part = memory ? memory + used : nullptr;
      used += padded(floats);
      return part;
    };
    AttentionBuffers b;
    b.queries = reinterpret_cast<uint16_t*>(take(queries * dim / 2));
    b.scores = take(queries * kKeyBlock);
    b.probabilities = reinterpret_cast<uint16_t*>(take(queries * kKeyBlock / 2));
    b.sums = take(queries * dim);
    b.totals = take(queries * dim);
    b.maxima = take(queries);
    b.weights = take(queries);
    b.total_maxima = take(queries);
    b.total_weights = take(queries);
    b.factors = take(queries);
    b.tops = take(queries);
    b.added = take(queries);
    b.limits = take(kKeyBlock);
    b.last_values = reinterpret_cast<uint16_t*>(take(dim));
    b.expanded = reinterpret_cast<uint16_t*>(take(kKeyBlock * dim));
    if (buffers) *buffers = b;
    return used;
  }
};

}  // namespace
}  // namespace inferloom
