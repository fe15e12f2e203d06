// The greatest of a matrix's results without reading most of the matrix. A screen holds four bits of each weight: the upper halves of Q8_HALVES, or
// Q4_DITHERED beside another layout. It gives an estimate of each result, with the middle of what was cut off in its place, and a bound of the
// estimate's error. Blocks that might hold the greatest result are then computed exactly.
//
// The dither moves where a number is cut, so what is cut off is anything from 0 to 16 steps with the same chance, whatever the number is, and
// independent from column to column: the result's error is a sum of uniform errors. Such a sum's tails are no heavier than those of a normal one of the
// same variance: with σ = 16 / √12 it exceeds √(2 ln(1 / p)) · σ · |x| · scale with a probability of at most p, whatever x is (Chernoff's bound;
// ln(sinh √t / √t) is concave in t, with a slope of at most 1/6; errors on a grid, as those here are, have lighter tails still).
#pragma once
#include <cmath>

#include "../dither.h"
#include "../operators.h"
#include "linear_quantised.h"

namespace inferloom {

// √(2 ln(1 / p)) · σ for p = 10⁻¹², with a thousandth for the rounding of float32 sums. Only if the bound of the greatest result itself failed
// would another one be found, and which that is does not depend on the dither: p is the chance for a token.
constexpr float kScreenMargin = 34.335f * 1.001f;

// How the bytes of 16 rows repeat: vectors of nibbles for `kSpan` times 32 columns of each of `kGroups` groups, then the groups' scales.
template <class S>
struct HalvesUnit {
  static constexpr bool kWhole = true;  // numbers of whole steps were cut
  static constexpr int kGroups = 1, kSpan = 4, kBytes = kHalvesUpper;
  static typename S::F scale(const uint8_t* unit, int) { return S::load(reinterpret_cast<const float*>(unit + kHalvesLower)); }
};

template <class S>
struct DitheredUnit {
  static constexpr bool kWhole = false;
  static constexpr int kGroups = 2, kSpan = 1, kBytes = 576;
  static typename S::F scale(const uint8_t* unit, int group) { return S::load_f16(reinterpret_cast<const uint16_t*>(unit + 512 + 32 * group)); }
};

template <class U>
inline constexpr int kUnitCols = 32 * U::kSpan * U::kGroups;

// The estimates' own order of activations: for each group int8 [kSpan][T][32], 16 × scales [kSpan][T],
// what bias, dither and the middle of what is cut off add to the sums [T], and the square of what it may add [T].
template <class U>
struct ScreenPanel {
  static constexpr int kTokenBytes = 36 * U::kSpan + 2 * 4;  // of a group
  alignas(64) uint8_t data[kMostDithered / (32 * U::kSpan) * kTokenBytes * kScreenedRows];
};

// How many sixteenths of a step a column's number is less than sixteen times its four bits, in the middle of what may be cut off: 0 … 15 whole steps of
// Q8_HALVES; of Q4_DITHERED 0 … 15 15/16 and what lies between two sixteenths, so that the middle is known to 1/32.
SIMD_INLINE int sixteenths_less(bool whole, int column) {
  return whole ? 16 * (kDitherBias + kDither.whole[column]) - 120 : 16 * kDitherBias + kDither.sixteenths[column] - 128;
}

template <class S, class U>
SIMD_INLINE void fill_screen(const Activations& x, int row, int T, int groups, ScreenPanel<U>& panel) {
  constexpr int N = U::kSpan;
  for (int t = 0; t < T; ++t) {
    const int64_t m = row + t;
    uint8_t* step = panel.data;
    for (int g = 0; g < groups; ++g, step += ScreenPanel<U>::kTokenBytes * T) {
      float bias = 0, squares = 0;
      for (int i = 0; i < N; ++i) {
        const int column = 32 * (N * g + i);
        const int8_t* q = x.q8 + m * x.stride + column;
        const float scale = x.scale[m * x.groups() + column / x.group], upper = 16 * scale;
        std::memcpy(step + 32 * (i * T + t), q, 32);
        std::memcpy(step + 32 * N * T + 4 * (i * T + t), &upper, 4);
        int32_t square = 0, less = 0, magnitude = 0;
        for (int k = 0; k < 32; ++k) {
          square += q[k] * q[k];
          less += q[k] * sixteenths_less(U::kWhole, column + k);
          magnitude += q[k] < 0 ? -q[k] : q[k];
        }
        squares += scale * scale * static_cast<float>(square);
        bias -= scale * static_cast<float>(less) / 16;
        if (!U::kWhole) bias += scale * static_cast<float>(magnitude) / 32;
      }
      squares *= kScreenMargin * kScreenMargin;
      std::memcpy(step + 36 * N * T + 4 * t, &bias, 4);
      std::memcpy(step + (36 * N + 4) * T + 4 * t, &squares, 4);
    }
  }
}

// bounds[t]: of each row's sum, from above.
template <class S, int T, class U>
void screen_bounds(const uint8_t* rows, int groups, const ScreenPanel<U>& panel, typename S::F (&bounds)[T]) {
  constexpr int N = U::kSpan;
  const uint8_t* step = panel.data;
  typename S::F squares[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) bounds[t] = squares[t] = S::zero();
  for (int unit = 0; unit < groups; unit += U::kGroups, rows += U::kBytes) {
    prefetch_lines<S, U::kBytes / 64, ahead_of(T, 4)>(rows);
#pragma GCC unroll 2
    for (int g = 0; g < U::kGroups; ++g, step += ScreenPanel<U>::kTokenBytes * T) {
      const auto* x = reinterpret_cast<const int8_t*>(step);
      const auto* x_scale = reinterpret_cast<const float*>(step + 32 * N * T);
      typename S::F sums[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[t] = S::set(x_scale[N * T + t]);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        typename S::N n[8];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) S::nibbles(rows + 256 * (N * g + i) + 64 * v, n[v], n[v + 4]);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          typename S::I d[1];
          S::template dot_nibbles<1>(n, x + 32 * (i * T + t), d);
          sums[t] = S::fma(S::to_float(d[0]), S::set(x_scale[i * T + t]), sums[t]);
        }
      }
      const auto scale = U::scale(rows, g);
      const auto square = S::mul(scale, scale);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        bounds[t] = S::fma(sums[t], scale, bounds[t]);
        squares[t] = S::fma(S::set(x_scale[(N + 1) * T + t]), square, squares[t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) bounds[t] = S::add(bounds[t], S::sqrt(squares[t]));
}

// Bounds of a share of the results, and each token's greatest of them with its block, where `peaks` has no greater one.
template <class S, int T, class U>
void bound_rows(const LinearJob& job, Peak* peaks, int block_begin, int block_end, int row_begin) {
  const Linear& w = *job.weight;
  const int groups = (w.cols + kUnitCols<U> - 1) / kUnitCols<U> * U::kGroups;
  ScreenPanel<U> panel;
  fill_screen<S, U>(*job.input, row_begin, T, groups, panel);
  const auto factor = S::set(job.factor);
  for (int block = block_begin; block < block_end; ++block) {
    typename S::F bounds[T];
    screen_bounds<S, T, U>(block_of(w, block), groups, panel, bounds);
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

template <class S, class U>
void bound_by(const LinearJob& job, Peak* peaks, int block_begin, int block_end, int row_begin, int row_end) {
  switch (row_end - row_begin) {
    case 1: return bound_rows<S, 1, U>(job, peaks, block_begin, block_end, row_begin);
    case 2: return bound_rows<S, 2, U>(job, peaks, block_begin, block_end, row_begin);
    case 3: return bound_rows<S, 3, U>(job, peaks, block_begin, block_end, row_begin);
    case 4: return bound_rows<S, 4, U>(job, peaks, block_begin, block_end, row_begin);
  }
}

template <class S>
void bound(const LinearJob& job, Peak* peaks, int block_begin, int block_end, int row_begin, int row_end) {
  const auto by = job.weight->layout == Layout::Q8_HALVES ? &bound_by<S, HalvesUnit<S>> : &bound_by<S, DitheredUnit<S>>;
  by(job, peaks, block_begin, block_end, row_begin, row_end);
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
