// The linear layer: a share of y = add · y + factor (W x + bias).
#pragma once
#include "../operators.h"
#include "linear_product.h"

namespace inferloom {

// Blocks are the outer loop: a block's weights come from memory once for all tokens of a panel, and the panel stays in the
// second-level cache.
template <class S>
void linear(const LinearJob& job, int block_begin, int block_end, int row_begin, int row_end) {
  const Linear& w = *job.weight;
  alignas(64) uint8_t data[kPanelBytes];
  alignas(64) float tile[kPanelTokens * kRowBlock];
  Panel<S> panel = panel_shape<S>(w, *job.input);
  const int capacity = panel_capacity(panel, kPanelBytes, kPanelTokens);
  const auto factor = S::set(job.factor);
  for (int row = row_begin; row < row_end; row += panel.tokens) {
    panel.tokens = row_end - row < capacity ? row_end - row : capacity;
    fill_panel<S>(panel, *job.input, row, data);
    for (int block = block_begin; block < block_end; ++block) {
      product<S>(w, block, panel, tile, kRowBlock);
      const int first = block * kRowBlock, n = w.rows - first < kRowBlock ? w.rows - first : kRowBlock;
      const auto bias = w.bias ? S::load(w.bias + first, n) : S::zero();
      for (int t = 0; t < panel.tokens; ++t) {
        float* y = job.output + (row + t) * job.output_stride + first;
        const auto v = S::add(S::load(tile + t * kRowBlock), bias);
        if (n == kRowBlock)
          S::store(y, job.add ? S::fma(v, factor, S::load(y)) : S::mul(v, factor));
        else
          S::store(y, job.add ? S::fma(v, factor, S::load(y, n)) : S::mul(v, factor), n);
      }
    }
  }
}

}  // namespace inferloom
