// Products of the 4-bit layouts that have no minimum, Q4S_32 and Q4Z_32, and int8 activations.
//
// Nibble and zero point become one byte, the level 4 · nibble + zero, while they are unpacked, so that the zero point costs nothing
// for a token: integers start at −kLevelBias · Σ x. A group of 32 then takes eight dot products, a conversion and one multiplication by
// its scale; the activations' scale follows once for their own group.
#pragma once
#include "linear_panel.h"

namespace inferloom {

template <class S, int LINES, int AHEAD>
SIMD_INLINE void prefetch_lines(const uint8_t* p) {
#pragma GCC unroll 16
  for (int i = 0; i < LINES; ++i) S::prefetch_far(p + AHEAD + 64 * i);
}

// Group g of a block of sixteen rows.
template <class S, bool ZERO>
SIMD_INLINE typename S::F unpack_levels(const uint8_t* rows, int g, typename S::N (&n)[8]) {
  const uint8_t* pair = rows + g / 2 * 576;
  const uint8_t* quads = pair + g % 2 * 256;
  const auto* halves = reinterpret_cast<const uint16_t*>(pair + 512 + g % 2 * 32);
  if (g % 2 == 0) prefetch_lines<S, 9, kFarAhead>(pair);
  const auto zero = ZERO ? S::low_six(halves) : S::set_int(0x01010101 * kSymmetricZero);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) S::levels(quads + 64 * v, zero, n[v], n[v + 4]);
  return S::load_f16(halves);
}

// One group's sums for T tokens.
template <class S, int T>
SIMD_INLINE void add_group(const typename S::N (&n)[8], typename S::F scale, const uint8_t* panel, typename S::F (&part)[T]) {
  const auto* x = reinterpret_cast<const int8_t*>(panel);
  const auto* start = reinterpret_cast<const int32_t*>(panel + 32 * T);
  constexpr int P = T > 1 && S::kByteDot ? 2 : 1;
#pragma GCC unroll 16
  for (int t = 0; t + P <= T; t += P) {
    typename S::I d[P];
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) d[i] = S::set_int(start[t + i]);
    S::template dot_levels<P>(n, x + 32 * t, d);
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) part[t + i] = S::fma(S::to_float(d[i]), scale, part[t + i]);
  }
  if constexpr (T % P != 0) {
    typename S::I d[1] = {S::set_int(start[T - 1])};
    S::template dot_levels<1>(n, x + 32 * (T - 1), d);
    part[T - 1] = S::fma(S::to_float(d[0]), scale, part[T - 1]);
  }
}

template <class S, int T, bool ZERO>
void levels_rows(const uint8_t* rows, int groups, int span, const uint8_t* panel, float* out, int64_t out_stride) {
  for (int g = 0; g < groups;) {
    const bool first = g == 0;
    const int end = g + span < groups ? g + span : groups;
    const auto* x_scale = reinterpret_cast<const float*>(panel + 36 * span * T);
    typename S::F part[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) part[t] = S::zero();
    for (; g < end; ++g, panel += 36 * T) {
      typename S::N n[8];
      const auto scale = unpack_levels<S, ZERO>(rows, g, n);
      add_group<S, T>(n, scale, panel, part);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* y = out + t * out_stride;
      S::store(y, first ? S::mul(part[t], S::set(x_scale[t])) : S::fma(part[t], S::set(x_scale[t]), S::load(y)));
    }
    panel = reinterpret_cast<const uint8_t*>(x_scale + T);
  }
}

// One group's sums for a few tokens. The low nibbles, and the high ones where they are, sixteen times their value, have sums of their own, so
// that nothing is shifted; the zero point is a product of words. Together they are a quarter of the sum of `add_group`, exactly: a token's
// result does not depend on how many others there are.
template <class S, int T>
SIMD_INLINE void add_few(const uint8_t* quads, typename S::I offsets, typename S::F scale, const uint8_t* panel, typename S::F (&part)[T]) {
  const auto* x = reinterpret_cast<const int8_t*>(panel);
  const auto* sums = reinterpret_cast<const int32_t*>(panel + 32 * T);
  typename S::I low[T], high[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    low[t] = S::zero_int();
    high[t] = S::dot_words(S::zero_int(), offsets, sums + t);
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    typename S::B n, m;
    S::nibbles_in_place(quads + 64 * v, n, m);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      low[t] = S::dot(low[t], n, x + 32 * t + 4 * v);
      high[t] = S::dot(high[t], m, x + 32 * t + 16 + 4 * v);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) part[t] = S::fma(S::fma(S::to_float(high[t]), S::set(1.0f / 16), S::to_float(low[t])), scale, part[t]);
}

template <class S, int T, bool ZERO>
void levels_few(const uint8_t* rows, int groups, int span, const uint8_t* panel, float* out, int64_t out_stride) {
  typename S::F acc[T], part[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) acc[t] = part[t] = S::zero();
  const auto scale_by = [&](const uint8_t* scales) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      acc[t] = S::fma(part[t], S::set(reinterpret_cast<const float*>(scales)[t]), acc[t]);
      part[t] = S::zero();
    }
  };
  const uint8_t* step_end = panel + 36 * span * T;  // the group of activations ends there, with its scales
  for (int g = 0; g < groups; g += 2, rows += 576) {
    prefetch_lines<S, 9, ahead_of(T, 1)>(rows);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const auto* halves = reinterpret_cast<const uint16_t*>(rows + 512 + 32 * i);
      const auto offsets = ZERO ? S::low_six_less(halves, kLevelBias) : S::set_int((kSymmetricZero - kLevelBias) & 0xffff);
      add_few<S, T>(rows + 256 * i, offsets, S::load_f16(halves), panel, part);
      panel += 36 * T;
      if (panel == step_end) {
        scale_by(panel);
        panel += 4 * T;
        step_end = panel + 36 * span * T;
      }
    }
  }
  if (groups % span) scale_by(step_end);  // the last group of activations reaches past the last columns
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, acc[t]);
}

// Σ over the groups of x of x_scale · Σ over their 32 columns of w_scale · Σ level · x.
template <class S, int T>
SIMD_INLINE void levels_tile(const Linear& w, const uint8_t* rows, int span, const uint8_t* panel, float* out, int64_t out_stride) {
  const int groups = (w.cols + 63) / 64 * 2;
  const bool zero = w.layout == Layout::Q4Z_32;
  if constexpr (few_tokens<S>(T)) {
    zero ? levels_few<S, T, true>(rows, groups, span, panel, out, out_stride) : levels_few<S, T, false>(rows, groups, span, panel, out, out_stride);
  } else {
    zero ? levels_rows<S, T, true>(rows, groups, span, panel, out, out_stride) : levels_rows<S, T, false>(rows, groups, span, panel, out, out_stride);
  }
}

}  // namespace inferloom
