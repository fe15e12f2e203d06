// Products of quantised weights and int8 activations: 16 rows × T tokens at a time. Lanes are rows; a token's bytes are broadcast, four
// columns at a time. The order of a sum depends on K alone: groups in turn.
#pragma once
#include "linear_levels.h"

namespace inferloom {

// Σ over groups of x_scale · (w_scale · Σ nibble · x + w_minimum · Σ x).
template <class S, int T>
void nibbles_tile(const uint8_t* w, int groups, const uint8_t* panel, float* out, int64_t out_stride) {
  typename S::F acc[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) acc[t] = S::zero();
  for (int g = 0; g < groups; ++g, w += 320, panel += 40 * T) {
    prefetch_lines<S, 5, ahead_of(T, S::kTile > 4 ? 2 : 0)>(w);  // narrow vectors take longer
    typename S::N n[8];
    for (int v = 0; v < 4; ++v) S::nibbles(w + 64 * v, n[v], n[v + 4]);
    const auto scale = S::load_f16(reinterpret_cast<const uint16_t*>(w + 256));
    const auto minimum = S::load_f16(reinterpret_cast<const uint16_t*>(w + 288));
    const auto* x = reinterpret_cast<const int8_t*>(panel);
    const auto* x_scale = reinterpret_cast<const float*>(panel + 32 * T);
    const float* x_sum = x_scale + T;
    constexpr int P = T > 1 && S::kByteDot ? 2 : 1;
#pragma GCC unroll 16
    for (int t = 0; t + P <= T; t += P) {
      typename S::I d[P];
      S::template dot_nibbles<P>(n, x + 32 * t, d);
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) {
        acc[t + i] = S::fma(S::to_float(d[i]), S::mul(scale, S::set(x_scale[t + i])), acc[t + i]);
        acc[t + i] = S::fma(minimum, S::set(x_sum[t + i]), acc[t + i]);
      }
    }
    if constexpr (T % P != 0) {
      typename S::I d[1];
      S::template dot_nibbles<1>(n, x + 32 * (T - 1), d);
      acc[T - 1] = S::fma(S::to_float(d[0]), S::mul(scale, S::set(x_scale[T - 1])), acc[T - 1]);
      acc[T - 1] = S::fma(minimum, S::set(x_sum[T - 1]), acc[T - 1]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, acc[t]);
}

// Σ over groups of x_scale · w_scale · Σ (byte − 128) · x. Q8_ROW: w_scale is one for the row; Q8_HALVES: `w` are the upper halves.
template <class S, int T, Layout LAYOUT>
void bytes_tile(const uint8_t* w, const uint8_t* lower, int groups, const uint8_t* panel, const float* row_scale, float* out, int64_t out_stride) {
  constexpr bool ROW = LAYOUT == Layout::Q8_ROW;
  typename S::F acc[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) acc[t] = S::zero();
  for (int g = 0; g < groups; ++g, panel += 40 * T) {
    typename S::B b[8];
    auto scale = S::zero();
    if constexpr (LAYOUT == Layout::Q8_HALVES) {
      const uint8_t *group = w + g / 4 * static_cast<int64_t>(kHalvesUpper), *upper = group + g % 4 * 256;
      for (int v = 0; v < 4; ++v) S::join(upper + 64 * v, lower + 256 * static_cast<int64_t>(g) + 64 * v, b[v], b[v + 4]);
      scale = S::load(reinterpret_cast<const float*>(group + kHalvesUpper - 64));
    } else {
      const uint8_t* quads = ROW ? w + 512 * static_cast<int64_t>(g) : w + g / 2 * 1088 + g % 2 * 512;
      prefetch_lines<S, ROW ? 8 : 9, ahead_of(T, 4)>(quads);
      for (int v = 0; v < 8; ++v) b[v] = S::bytes(quads + 64 * v);
    }
    const auto* x = reinterpret_cast<const int8_t*>(panel);
    const auto* x_scale = reinterpret_cast<const float*>(panel + 32 * T);
    const auto* start = reinterpret_cast<const int32_t*>(panel + 36 * T);
    if constexpr (LAYOUT == Layout::Q8_32) scale = S::load_f16(reinterpret_cast<const uint16_t*>(w + g / 2 * 1088 + 1024 + g % 2 * 32));
    constexpr int P = T > 1 && S::kByteDot ? 2 : 1;
#pragma GCC unroll 16
    for (int t = 0; t < T; t += P) {
      if (P == 2 && t + 1 == T) break;
      typename S::I d[P];
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) d[i] = S::set_int(start[t + i]);
      S::template dot_bytes<P>(b, x + 32 * t, d);
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) {
        const auto factor = ROW ? S::set(x_scale[t + i]) : S::mul(scale, S::set(x_scale[t + i]));
        acc[t + i] = S::fma(S::to_float(d[i]), factor, acc[t + i]);
      }
    }
    if constexpr (T % P != 0) {
      typename S::I d[1] = {S::set_int(start[T - 1])};
      S::template dot_bytes<1>(b, x + 32 * (T - 1), d);
      const auto factor = ROW ? S::set(x_scale[T - 1]) : S::mul(scale, S::set(x_scale[T - 1]));
      acc[T - 1] = S::fma(S::to_float(d[0]), factor, acc[T - 1]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, ROW ? S::mul(acc[t], S::load(row_scale)) : acc[t]);
}

// The same for groups of 128 and one scale a row: one conversion and multiplication for 128 columns. The integers stay in
// registers, the float sums in the output.
template <class S, int T>
void bytes_128_tile(const uint8_t* w, int groups, const uint8_t* panel, const float* row_scale, float* out, int64_t out_stride) {
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, S::zero());
  for (int g = 0; g < groups; ++g, panel += 136 * T) {
    const auto* x = reinterpret_cast<const int8_t*>(panel);
    const auto* x_scale = reinterpret_cast<const float*>(panel + 128 * T);
    const auto* start = reinterpret_cast<const int32_t*>(panel + 132 * T);
    constexpr int C = T == 1 ? 4 : 1;  // sums of a token: one token's products would wait for each other
    typename S::I d[T][C];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) d[t][c] = c ? S::zero_int() : S::set_int(start[t]);
    }
    for (int q = 0; q < 32; q += C) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c, w += 64, x += 4 * T) {
        S::prefetch_far(w + ahead_of(T, 4));
        const auto b = S::bytes(w);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) d[t][c] = S::dot(d[t][c], b, x + 4 * t);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* y = out + t * out_stride;
#pragma GCC unroll 4
      for (int c = 1; c < C; ++c) d[t][0] = S::add(d[t][0], d[t][c]);
      S::store(y, S::fma(S::to_float(d[t][0]), S::set(x_scale[t]), S::load(y)));
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, S::mul(S::load(out + t * out_stride), S::load(row_scale)));
}

// The same of Q8_HALVES, whose scales are of 128 columns.
template <class S, int T>
void halves_128_tile(const uint8_t* w, const uint8_t* lower, int groups, const uint8_t* panel, float* out, int64_t out_stride) {
  constexpr int64_t ahead = ahead_of(T, 4);
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) S::store(out + t * out_stride, S::zero());
  for (int g = 0; g < groups; ++g, panel += 136 * T, w += 64) {
    const auto* x = reinterpret_cast<const int8_t*>(panel);
    const auto* x_scale = reinterpret_cast<const float*>(panel + 128 * T);
    const auto* start = reinterpret_cast<const int32_t*>(panel + 132 * T);
    constexpr int C = T == 1 ? 4 : 1;
    typename S::I d[T][C];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) d[t][c] = c ? S::zero_int() : S::set_int(start[t]);
    }
    for (int part = 0; part < 4; ++part, x += 16 * T) {  // of 32 columns: quads v and v + 4 share a vector of each half
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v, w += 64, lower += 64, x += 4 * T) {
        S::prefetch_far(w + ahead);
        S::prefetch_far(lower + ahead);
        typename S::B first, second;
        S::join(w, lower, first, second);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          d[t][v % C] = S::dot(d[t][v % C], first, x + 4 * t);
          d[t][v % C] = S::dot(d[t][v % C], second, x + 4 * (4 * T + t));
        }
      }
    }
    const auto scale = S::load(reinterpret_cast<const float*>(w));
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* y = out + t * out_stride;
#pragma GCC unroll 4
      for (int c = 1; c < C; ++c) d[t][0] = S::add(d[t][0], d[t][c]);
      S::store(y, S::fma(S::to_float(d[t][0]), S::mul(scale, S::set(x_scale[t])), S::load(y)));
    }
  }
}

template <class S, int T>
void quantised_tile(const Linear& w, int number, const Panel<S>& panel, const uint8_t* x, float* out, int64_t out_stride) {
  const bool halves = w.layout == Layout::Q8_HALVES;
  const uint8_t *block = block_of(w, number), *lower = halves ? lower_of(w, number) : nullptr;
  const auto* row_scale = halves ? nullptr : reinterpret_cast<const float*>(block + block_bytes(w) - 64);
  if (panel.kind == PanelKind::NIBBLES)
    nibbles_tile<S, T>(block, panel.steps, x, out, out_stride);
  else if (panel.kind == PanelKind::LEVELS)
    levels_tile<S, T>(w, block, panel.group / 32, x, out, out_stride);
  else if (panel.kind == PanelKind::BYTES_128)
    halves ? halves_128_tile<S, T>(block, lower, panel.steps, x, out, out_stride) : bytes_128_tile<S, T>(block, panel.steps, x, row_scale, out, out_stride);
  else if (halves)
    bytes_tile<S, T, Layout::Q8_HALVES>(block, lower, panel.steps, x, nullptr, out, out_stride);
  else if (w.layout == Layout::Q8_ROW)
    bytes_tile<S, T, Layout::Q8_ROW>(block, nullptr, panel.steps, x, row_scale, out, out_stride);
  else
    bytes_tile<S, T, Layout::Q8_32>(block, nullptr, panel.steps, x, nullptr, out, out_stride);
}

// Rows of one block times every token of the panel: out[token * out_stride + row]. A tile writes `size` tokens.
template <class S>
void quantised_product(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  for (Tile tile = panel.head(); tile.count; tile = panel.next(tile)) {
    prefetch_target<S>(target, tile);
    const uint8_t* x = panel.data + tile.begin;
    float* y = out + tile.first * out_stride;
    switch (tile.size) {
      case 1: quantised_tile<S, 1>(w, block, panel, x, y, out_stride); break;
      case 2: quantised_tile<S, 2>(w, block, panel, x, y, out_stride); break;
      case 3: quantised_tile<S, 3>(w, block, panel, x, y, out_stride); break;
      case 4: quantised_tile<S, 4>(w, block, panel, x, y, out_stride); break;
      default:
        if constexpr (S::kTile > 4) {
          switch (tile.size) {
            case 6: quantised_tile<S, 6>(w, block, panel, x, y, out_stride); break;
            case 8: quantised_tile<S, 8>(w, block, panel, x, y, out_stride); break;
            case 10: quantised_tile<S, 10>(w, block, panel, x, y, out_stride); break;
            case 12: quantised_tile<S, 12>(w, block, panel, x, y, out_stride); break;
            case 14: quantised_tile<S, 14>(w, block, panel, x, y, out_stride); break;
            case 16: quantised_tile<S, 16>(w, block, panel, x, y, out_stride); break;
          }
        }
    }
  }
}

}  // namespace inferloom
