// The first half of a feed-forward layer: h = activation(gate x) · (up x), handed on in the forms that the second half
// reads.
#pragma once
#include "../isa/math.h"
#include "../operators.h"
#include "linear_product.h"
#include "quantise.h"

namespace inferloom {

// Tokens of a panel: gate's and up's results of one unit wait in the cache until both are there.
constexpr int kGatedTokens = 64;

template <class S>
SIMD_INLINE typename S::F activate(Activation kind, typename S::F x) {
  switch (kind) {
    case Activation::SILU: return silu<S>(x);
    case Activation::GELU: return gelu<S>(x);
    case Activation::GELU_TANH: return gelu_tanh<S>(x);
    case Activation::NONE: break;
  }
  return x;
}

// Columns [first, first + n) of h before the activation.
template <class S>
SIMD_INLINE void unit_product(const Linear& w, int unit, const Panel<S>& panel, float* out) {
  constexpr int kBlocks = kGatedUnit / kRowBlock;
  const int end = (unit + 1) * kBlocks < w.blocks() ? (unit + 1) * kBlocks : w.blocks();
  for (int block = unit * kBlocks; block < end; ++block)
    product<S>(w, block, panel, out + (block - unit * kBlocks) * kRowBlock, kGatedUnit, {nullptr, 0});
}

// One token's unit: h in place of the gate's product.
template <class S>
void apply_gate(const GatedJob& job, int first, int n, float* gate, const float* up) {
  for (int i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? n - i : 16;
    auto g = S::load(gate + i);
    if (job.gate->bias) g = S::add(g, S::load(job.gate->bias + first + i, count));
    auto h = activate<S>(job.activation, g);
    if (job.up) {
      auto u = S::load(up + i);
      if (job.up->bias) u = S::add(u, S::load(job.up->bias + first + i, count));
      h = S::mul(h, u);
    }
    S::store(gate + i, h);
  }
}

template <class S>
void gated(const GatedJob& job, int unit_begin, int unit_end, int row_begin, int row_end) {
  // Two panels where gate and up want different forms of x (a checkpoint quantised tensor by tensor), else one.
  alignas(64) uint8_t data[2][kPanelBytes / 2];
  alignas(64) float gate[kGatedTokens * kGatedUnit], up[kGatedTokens * kGatedUnit];
  Panel<S> gate_panel = panel_shape<S>(*job.gate, *job.input);
  Panel<S> up_panel = job.up ? panel_shape<S>(*job.up, *job.input) : gate_panel;
  const int most[2] = {panel_capacity(gate_panel, sizeof data[0], kGatedTokens),
                       panel_capacity(up_panel, sizeof data[1], kGatedTokens)};
  const int capacity = most[0] < most[1] ? most[0] : most[1];
  for (int row = row_begin; row < row_end; row += gate_panel.tokens) {
    gate_panel.tokens = up_panel.tokens = panel_share(row_end - row, capacity);
    fill_panel<S>(gate_panel, *job.input, row, data[0]);
    if (up_panel.kind == gate_panel.kind)
      up_panel.data = data[0];
    else
      fill_panel<S>(up_panel, *job.input, row, data[1]);
    for (int unit = unit_begin; unit < unit_end; ++unit) {
      const int first = unit * kGatedUnit, left = job.gate->rows - first, n = left < kGatedUnit ? left : kGatedUnit;
      unit_product<S>(*job.gate, unit, gate_panel, gate);
      if (job.up) unit_product<S>(*job.up, unit, up_panel, up);
      for (int t = 0; t < gate_panel.tokens; ++t) {
        apply_gate<S>(job, first, n, gate + t * kGatedUnit, up + t * kGatedUnit);
        write_forms<S>(*job.output, row + t, first, gate + t * kGatedUnit, n);
      }
    }
  }
}

}  // namespace inferloom
