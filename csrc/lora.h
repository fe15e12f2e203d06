// Low-rank adapters beside a linear layer, each row of a batch with its own: y[m] += scale · B (A x[m]) (Hu et al.,
// LoRA, 2021).
#pragma once
#include <cstdint>

#include "activations.h"

namespace inferloom {

struct LoraAdapter {
  const uint16_t* a;  // bfloat16 [rank, K]
  const uint16_t* b;  // bfloat16 [rank, N]: the transpose of what checkpoints hold, so that outputs lie side by side
  int32_t rank;
  float scale;        // alpha / rank, or alpha / √rank
};

struct LoraJob {
  const Activations* input;      // with the bfloat16 form, K columns
  const LoraAdapter* adapters;
  const int32_t* adapter_of_row; // [M]; −1: none
  float* reduced;                // [M, reduced_stride]: A x of each row, between the two operators
  int64_t reduced_stride;        // ≥ the largest rank
  float* output;                 // [M, output_stride]
  int64_t output_stride;
  int32_t cols;                  // N
};

struct LoraOperators {
  // reduced = A x, for rows [row_begin, row_end).
  void (*reduce)(const LoraJob&, int row_begin, int row_end);
  // output += scale · B reduced, for output columns of blocks [block_begin, block_end) (16 each) and rows [row_begin,
  // row_end).
  void (*expand)(const LoraJob&, int block_begin, int block_end, int row_begin, int row_end);
};

}  // namespace inferloom
