// The matrix product of attention, for both of its halves: scores = queries · keysᵀ and sums += probabilities · values.
// The left operand is bfloat16 pairs read one pair at a time (a broadcast), the right one vectors of 16 pairs as they
// lie in a KV page.
#pragma once
#include "attention_fetch.h"

namespace inferloom {
namespace {

struct ProductInput {
  const uint16_t* left;  // pair k of row i: left[i * left_stride + 2 k] and the next
  int64_t left_stride;   // elements
  int64_t right_stride;  // elements from step k to step k + 1 of every right vector
  int32_t steps;
};

// Meanwhile `lines` are fetched. sums[i][v] += Σ_k left pair · right pair, k ascending whatever ROWS and VECTORS are: a
// row's bits do not depend on its tile.
template <class S, int ROWS, int VECTORS>
[[gnu::always_inline]] inline void multiply(const ProductInput& in, const uint16_t* const (&right)[VECTORS],
                                            FetchQueue::Lines& lines, typename S::F (&sums)[ROWS][VECTORS]) {
  const uint16_t* left = in.left;
  for (int32_t k = 0; k < in.steps; ++k) {
    typename S::H vectors[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) vectors[v] = S::load_pairs(right[v] + k * in.right_stride);
    FetchQueue::fetch<S, VECTORS>(lines);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const auto pair = S::set_pair(left + i * in.left_stride + 2 * k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[i][v] = S::bf16_dot(sums[i][v], vectors[v], pair);
    }
  }
}

// Calls tile(Rows<n>, first row) over `rows` in tiles of at most MOST rows of nearly equal size.
template <int ROWS>
struct Rows {
  static constexpr int value = ROWS;
};

template <int MOST, class Tile>
[[gnu::always_inline]] inline void for_row_tiles(int rows, Tile&& tile) {
  for (int row = 0; row < rows;) {
    const int left = rows - row, tiles = (left + MOST - 1) / MOST, size = (left + tiles - 1) / tiles;
    switch (size) {
      case 1: tile(Rows<1>{}, row); break;
      case 2: tile(Rows<(MOST < 2 ? 1 : 2)>{}, row); break;
      case 3: tile(Rows<(MOST < 3 ? 1 : 3)>{}, row); break;
      case 4: tile(Rows<(MOST < 4 ? 1 : 4)>{}, row); break;
      case 5: tile(Rows<(MOST < 5 ? 1 : 5)>{}, row); break;
      default: tile(Rows<(MOST < 6 ? 1 : 6)>{}, row); break;
    }
    row += size;
  }
}

}  // namespace
}  // namespace inferloom
