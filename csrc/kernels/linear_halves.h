// Q8_HALVES: all sums of a block, as Q8_ROW has them, or the greatest of a matrix without reading most of the lower halves.
//
// For the greatest, upper halves alone give an estimate of each sum, with the middle of what a lower half can be in its place. The dither moves where
// a number is cut, so a lower half is any of 0 … 15 with the same chance, whatever the number is, and independent from column to column: the sum's
// error is one of uniform errors. Such a sum's tails are no heavier than those of a normal one of the same variance: with σ = √((16² − 1) / 12) it exceeds
// √(2 ln(1 / p)) · σ · |x| · scale with a probability of at most p, whatever x is (Chernoff's bound; ln(sinh √t / √t) is concave in t, with
// a slope of at most 1/6). Blocks that might hold the greatest sum are computed exactly.
#pragma once
#include <cmath>

#include "../dither.h"
#include "../operators.h"
#include "linear_quantised.h"

namespace inferloom {

// √(2 ln(1 / p)) · σ for p = 10⁻¹², with a thousandth for the rounding of float32 sums. Only if the bound of the greatest result itself failed
// would another one be found, and which that is does not depend on the dither: p is the chance for a token.
constexpr float kHalvesMargin = 34.269f * 1.001f;

// The estimates' own order of activations: for each 128 columns int8 [4][T][32], 16 × scales [4][T],
// what bias, dither and the middle of the lower halves add to the sums [T], and the square of what the lower halves may add [T].
struct HalvesPanel {
  static constexpr int kTokenBytes = kHalvesGroup + 4 * 4 + 2 * 4;  // of a group of columns
  alignas(64) uint8_t data[kMostDithered / kHalvesGroup * kTokenBytes * kScreenedRows];
};

template <class S>
SIMD_INLINE void fill_halves(const Activations& x, int row, int T, int groups, HalvesPanel& panel) {
  for (int t = 0; t < T; ++t) {
    const int64_t m = row + t;
    uint8_t* step = panel.data;
    for (int g = 0; g < groups; ++g, step += HalvesPanel::kTokenBytes * T) {
      float bias = 0, squares = 0;
      for (int i = 0; i < 4; ++i) {
        const int8_t* q = x.q8 + m * x.stride + 128 * g + 32 * i;
        const float scale = x.scale[m * x.groups() + (128 * g + 32 * i) / x.group], upper = 16 * scale;
        std::memcpy(step + 32 * (i * T + t), q, 32);
        std::memcpy(step + 128 * T + 4 * (i * T + t), &upper, 4);
        const int8_t* dither = kDither.of + 128 * g + 32 * i;
        int32_t square = 0, twice = 0;
        for (int k = 0; k < 32; ++k) {
          square += q[k] * q[k];
          twice += q[k] * (2 * (dither[k] + kHalvesBias) - 15);
        }
        squares += scale * scale * static_cast<float>(square);
        bias -= scale * static_cast<float>(twice) / 2;
      }
      squares *= kHalvesMargin * kHalvesMargin;
      std::memcpy(step + 144 * T + 4 * t, &bias, 4);
      std::memcpy(step + 148 * T + 4 * t, &squares, 4);
    }
  }
}

// bounds[t]: of each row's sum, from above.
template <class S, int T>
void halves_bounds(const uint8_t* rows, int groups, const HalvesPanel& panel, typename S::F (&bounds)[T]) {
  const uint8_t* step = panel.data;
  typename S::F squares[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) bounds[t] = squares[t] = S::zero();
  for (int g = 0; g < groups; ++g, rows += kHalvesUpper, step += HalvesPanel::kTokenBytes * T) {
    prefetch_lines<S, kHalvesUpper / 64, ahead_of(T, 4)>(rows);
    const auto* x = reinterpret_cast<const int8_t*>(step);
    const auto* x_scale = reinterpret_cast<const float*>(step + 128 * T);
    typename S::F sums[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sums[t] = S::set(x_scale[4 * T + t]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      typename S::N n[8];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) S::nibbles(rows + 256 * i + 64 * v, n[v], n[v + 4]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        typename S::I d[1];
        S::template dot_nibbles<1>(n, x + 32 * (i * T + t), d);
        sums[t] = S::fma(S::to_float(d[0]), S::set(x_scale[i * T + t]), sums[t]);
      }
    }
    const auto scale = S::load(reinterpret_cast<const float*>(rows + kHalvesLower));
    const auto square = S::mul(scale, scale);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      bounds[t] = S::fma(sums[t], scale, bounds[t]);
      squares[t] = S::fma(S::set(x_scale[5 * T + t]), square, squares[t]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) bounds[t] = S::add(bounds[t], S::sqrt(squares[t]));
}

// Bounds of a share of the results, and each token's greatest of them with its block, where `peaks` has no greater one.
template <class S, int T>
void bound_rows(const LinearJob& job, Peak* peaks, int block_begin, int block_end, int row_begin) {
  const Linear& w = *job.weight;
  const int groups = (w.cols + kHalvesGroup - 1) / kHalvesGroup;
  HalvesPanel panel;
  fill_halves<S>(*job.input, row_begin, T, groups, panel);
  const auto factor = S::set(job.factor);
  for (int block = block_begin; block < block_end; ++block) {
    typename S::F bounds[T];
    halves_bounds<S, T>(block_of(w, block), groups, panel, bounds);
    const int first = block * kRowBlock, left = w.rows - first;
    for (int t = 0; t < T; ++t) {
      const auto bound = S::mul(bounds[t], factor);
      float* y = job.output + (row_begin + t) * job.output_stride + first;
      float greatest = -INFINITY;
      if (left >= kRowBlock) {
        S::store(y, bound);
        greatest = S::max_of(bound);
      } else {
        S::store(y, bound, left);
        for (int i = 0; i < left; ++i) greatest = y[i] > greatest ? y[i] : greatest;
      }
      if (greatest > peaks[t].bound) peaks[t] = {greatest, block};
    }
  }
}

template <class S>
void bound(const LinearJob& job, Peak* peaks, int block_begin, int block_end, int row_begin, int row_end) {
  switch (row_end - row_begin) {
    case 1: return bound_rows<S, 1>(job, peaks, block_begin, block_end, row_begin);
    case 2: return bound_rows<S, 2>(job, peaks, block_begin, block_end, row_begin);
    case 3: return bound_rows<S, 3>(job, peaks, block_begin, block_end, row_begin);
    case 4: return bound_rows<S, 4>(job, peaks, block_begin, block_end, row_begin);
  }
}

// Whether one of `count` bounds is not below what is reached.
template <class S>
SIMD_INLINE bool any_reach(const float* bounds, int count, float reached) {
  bool open = false;
  if (count == kRowBlock) return S::bits(S::greater(S::set(reached), S::load(bounds))) != 0xffff;
  for (int i = 0; i < count; ++i) open |= !(bounds[i] < reached);
  return open;
}

template <class S>
int settle(const LinearJob& job, Best* best, int block_begin, int block_end, int row_begin, int row_end) {
  const Linear& w = *job.weight;
  alignas(64) uint8_t data[kMostDithered / 32 * 40 * kScreenedRows];
  alignas(64) float sums[kScreenedRows * kRowBlock];
  Panel<S> panel = panel_shape<S>(w, *job.input);
  const int tokens = row_end - row_begin;
  int opened = 0;
  for (int block = block_begin; block < block_end; ++block) {
    const int first = block * kRowBlock, count = w.rows - first < kRowBlock ? w.rows - first : kRowBlock;
    bool open = false;
    for (int t = 0; t < tokens; ++t)
      open |= any_reach<S>(job.output + (row_begin + t) * job.output_stride + first, count, best[t].value);
    if (!open) continue;
    if (!panel.tokens) {
      panel.tokens = tokens;
      fill_panel<S>(panel, *job.input, row_begin, data);
    }
    quantised_product<S>(w, block, panel, sums, kRowBlock, {nullptr, 0});
    ++opened;
    for (int t = 0; t < tokens; ++t)
      for (int i = 0; i < count; ++i) best[t].see(sums[t * kRowBlock + i] * job.factor, first + i);
  }
  return opened;
}

}  // namespace inferloom
