// One token for each of a batch of rows of logits, without sorting the vocabulary. What inferloom/engine/row_sampler.py
// does with numpy, in the same order: temperature, top-k, top-p of what top-k left, min-p; the same token for the same
// random number, up to the rounding of sums.
#pragma once
#include <cstddef>
#include <cstdint>

namespace inferloom {

struct Operators;

constexpr int kMaximumBlock = 64;  // columns that share one entry of `maxima`
constexpr int kMassBlock = 256;    // columns that share one entry of `masses`
constexpr int kWeightEdges = 8;    // of weights, that one pass compares with

// A row divided by its temperature: score = (logit - top) / temperature; weight = e^score, 0 where the score is below
// `least`.
struct ScoredRow {
  const float* logits;
  int32_t vocab;
  float top;
  float temperature;
  float least;
};

// What differs between instruction sets: passes over a row.
struct SamplingOperators {
  // The largest logit of every kMaximumBlock columns; returns that of the row, NaN where there is one.
  float (*maxima)(const float* logits, int32_t vocab, float* maxima);
  // The sum of the weights of every kMassBlock columns.
  void (*masses)(const ScoredRow& row, float* masses);
  // The weights of columns [begin, begin + n).
  void (*weights)(const ScoredRow& row, int32_t begin, int32_t n, float* weights);
  // The columns of [begin, begin + n) whose value is at least `low` and below `high`, in order; returns how many.
  int32_t (*within)(const float* row, int32_t begin, int32_t n, float low, float high, float* values, int32_t* ids);
  // sums[k]: of the weights that are at least edges[k], for kWeightEdges edges.
  void (*sums_from)(const float* weights, int32_t n, const float* edges, double* sums);
};

// Draws that take no part in a filter: temperature 0 is greedy; top_k ≤ 0, top_p ≥ 1 and min_p ≤ 0 are off.
struct Draw {
  int64_t row;  // of the logits
  double top_p;
  double dice;  // in [0, 1)
  float temperature;
  float min_p;
  int32_t top_k;
};

// The first of `count` columns that equals their greatest, `top`, by the `maxima` of them; `count` where none does.
int32_t first_best(const float* logits, int32_t count, const float* maxima, float top);

// tokens[i] for draws[i]; −1 where a row is no distribution (NaN, or nothing above −∞). Ties go to the lower id.
// `threads` share the draws.
void sample(const Operators& operators, const float* logits, int64_t stride, int32_t vocab, const Draw* draws,
            int32_t count, int32_t* tokens, int threads);

// Natural log probabilities of the logits as they are: of tokens[i] in rows[i], and the `best` likeliest with their
// ids, best first (ids and values [count, best]).
void log_probabilities(const Operators& operators, const float* logits, int64_t stride, int32_t vocab,
                       const int64_t* rows, const int32_t* tokens, int32_t count, int32_t best, float* chosen,
                       int32_t* ids, float* values, int threads);

}  // namespace inferloom
