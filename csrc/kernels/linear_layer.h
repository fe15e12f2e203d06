// The linear layer: a share of y = add · y + factor (W x + bias).
#pragma once
#include "../operators.h"
#include "linear_product.h"
#include "linear_screen.h"

namespace inferloom {

// Blocks whose results are stored together: a token's lie side by side, and a row of outputs is far from the next one.
constexpr int kStoredBlocks = 4;

// The rows of `blocks` blocks from `block` on, for one token: sums to results.
template <class S>
SIMD_INLINE void finish_rows(const LinearJob& job, int block, int blocks, const float* sums, float* y) {
  const auto factor = S::set(job.factor);
  for (int i = 0; i < blocks * kRowBlock; i += kRowBlock) {
    const int first = block * kRowBlock + i, left = job.weight->rows - first;
    const auto sum = S::load(sums + i);
    if (left >= kRowBlock) {
      const auto v = job.weight->bias ? S::add(sum, S::load(job.weight->bias + first)) : sum;
      S::store(y + i, job.add ? S::fma(v, factor, S::load(y + i)) : S::mul(v, factor));
    } else {
      const auto v = job.weight->bias ? S::add(sum, S::load(job.weight->bias + first, left)) : sum;
      S::store(y + i, job.add ? S::fma(v, factor, S::load(y + i, left)) : S::mul(v, factor), left);
    }
  }
}

// Blocks are the outer loop: a block's weights come from memory once for all tokens of a panel, and the panel stays in the
// second-level cache.
template <class S>
void linear(const LinearJob& job, int block_begin, int block_end, int row_begin, int row_end) {
  constexpr int kColumns = kStoredBlocks * kRowBlock;
  alignas(64) uint8_t data[kPanelBytes];
  alignas(64) float sums[kPanelTokens * kColumns];
  Panel<S> panel = panel_shape<S>(*job.weight, *job.input);
  const int capacity = panel_capacity(panel, kPanelBytes, kPanelTokens);
  for (int row = row_begin; row < row_end; row += panel.tokens) {
    panel.tokens = panel_share(row_end - row, capacity);
    fill_panel<S>(panel, *job.input, row, data);
    for (int block = block_begin; block < block_end; block += kStoredBlocks) {
      const int blocks = block_end - block < kStoredBlocks ? block_end - block : kStoredBlocks;
      float* y = job.output + row * job.output_stride + block * kRowBlock;
      for (int b = 0; b < blocks; ++b)
        product<S>(*job.weight, block + b, panel, sums + b * kRowBlock, kColumns, {y + b * kRowBlock, job.output_stride});
      for (int t = 0; t < panel.tokens; ++t) finish_rows<S>(job, block, blocks, sums + t * kColumns, y + t * job.output_stride);
    }
  }
}

}  // namespace inferloom
