// Products of row-major float weights. Lanes are columns; a sum is reduced across lanes at the end of each chunk of 32 steps (2 KB of
// bfloat16 or float32). The order of a sum depends on K alone: lanes, the tree of `sum4`, chunks in turn.
//
// A few tokens take one row after the other, so that memory is read in one stream: two threads on Zen 4 get 50 … 57 GB/s so, 42 with
// sixteen rows at a time and 25 with two. More tokens take a band of rows, whose chunk stays in the first-level cache while tiles of tokens
// pass by; the band's next chunk is asked for meanwhile.
#pragma once
#include <type_traits>

#include "linear_panel.h"

namespace inferloom {

template <class S>
struct Bfloat16Rows {
  using Element = uint16_t;
  using W = typename S::H;
  static constexpr int kStep = 32;
  SIMD_INLINE W load(const uint16_t* p) { return S::load_pairs(p); }
  SIMD_INLINE W load(const uint16_t* p, int n) { return S::load_pairs(p, n); }
  SIMD_INLINE W load_panel(const uint8_t* p) { return S::load_pairs(reinterpret_cast<const uint16_t*>(p)); }
  SIMD_INLINE void store_panel(uint8_t* p, W w) { S::store_pairs(reinterpret_cast<uint16_t*>(p), w); }
  SIMD_INLINE typename S::F step(typename S::F acc, W w, W x) { return S::bf16_dot(acc, w, x); }
};

template <class S>
struct FloatRows {
  using Element = float;
  using W = typename S::F;
  static constexpr int kStep = 16;
  SIMD_INLINE W load(const float* p) { return S::load(p); }
  SIMD_INLINE W load(const float* p, int n) { return S::load(p, n); }
  SIMD_INLINE W load_panel(const uint8_t* p) { return S::load(reinterpret_cast<const float*>(p)); }
  SIMD_INLINE void store_panel(uint8_t* p, W w) { S::store(reinterpret_cast<float*>(p), w); }
  SIMD_INLINE typename S::F step(typename S::F acc, W w, W x) { return S::fma(w, x, acc); }
};

template <class S>
struct HalfRows : FloatRows<S> {
  using Element = uint16_t;
  using W = typename S::F;
  SIMD_INLINE W load(const uint16_t* p) { return S::load_f16(p); }
  SIMD_INLINE W load(const uint16_t* p, int n) { return S::load_f16(p, n); }
};

// T tokens, which are the whole panel, times a block's rows, one after the other.
template <class S, class E, int T>
void few_product(const Linear& w, int block, const uint8_t* panel, float* out, int64_t out_stride) {
  constexpr int kChunks = T == 1 ? 16 : 4;  // of a row that is longer the first part of every row comes first, then the second
  constexpr int64_t kColumns = kChunks * kChunkSteps * E::kStep;
  const auto* data = static_cast<const typename E::Element*>(w.data);
  const int64_t K = w.cols;
  const int64_t ahead = T > 1 && K > kColumns ? K : ahead_of(T, 1) / static_cast<int64_t>(sizeof(typename E::Element));
  for (int64_t column = 0; column < K; column += kColumns) {
    for (int band = 0; band < kRowBlock && block * kRowBlock + band < w.rows; band += 4) {
      typename S::F sums[kChunks][T][4];
      for (int r = 0; r < 4; ++r) {
        const int row = block * kRowBlock + band + r;
        const auto* p = data + (row < w.rows ? row : w.rows - 1) * K + column;  // past the last row: a result that is dropped
        const uint8_t* x = panel + column / E::kStep * 64 * T;
        int64_t left = K - column;
        for (int c = 0; c < kChunks && left > 0; ++c) {
          typename S::F acc[T];
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) acc[t] = S::zero();
          int k = 0;
          for (; k < kChunkSteps && left >= E::kStep; ++k, left -= E::kStep, p += E::kStep, x += 64 * T) {
            S::prefetch_far(p + ahead);
            const auto v = E::load(p);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[t] = E::step(acc[t], v, E::load_panel(x + 64 * t));
          }
          if (k < kChunkSteps && left > 0) {
            const auto v = E::load(p, static_cast<int>(left));
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[t] = E::step(acc[t], v, E::load_panel(x + 64 * t));
            left = 0;
          }
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) sums[c][t][r] = acc[t];
        }
      }
      int64_t begin = column;
      for (int c = 0; c < kChunks && begin < K; ++c, begin += kChunkSteps * E::kStep) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          float four[4], *y = out + t * out_stride + band;
          S::sum4(sums[c][t][0], sums[c][t][1], sums[c][t][2], sums[c][t][3], four);
          for (int r = 0; r < 4; ++r) y[r] = begin ? y[r] + four[r] : four[r];
        }
      }
    }
  }
}

// The band's chunk that is computed next lies `elements` further; a tile asks for rows [begin, end) of it, as every tile of a panel
// does for others.
struct Ahead {
  int64_t elements;
  int begin, end;
};

// One step of a band: T tokens' sums. `w`: the vectors of its rows, one at a time.
template <class S, class E, int T, class Weights>
SIMD_INLINE void band_step(typename S::F (&acc)[T][S::kRowBand], const uint8_t* x, Weights&& w) {
  typename E::W v[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) v[t] = E::load_panel(x + 64 * t);
#pragma GCC unroll 8
  for (int r = 0; r < S::kRowBand; ++r) {
    const typename E::W one = w(r);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t][r] = E::step(acc[t][r], one, v[t]);
  }
}

// One chunk of a band, from `rows`, its pointers at the chunk's beginning: whole steps, then `tail` columns of one more. The panel's first
// tile (FIRST) copies it to packed[step][row][64 bytes], the last step completed with zeros, and the others read it there: no lines are
// split, no rows lie a power of two apart. out[t * out_stride + r] = or += the sums.
template <class S, class E, int T, bool FIRST>
void rows_tile(const typename E::Element* const* rows, uint8_t* packed, const Ahead& ahead, int steps, int tail, const uint8_t* x, float* out,
               int64_t out_stride, bool first) {
  constexpr int R = S::kRowBand;
  typename S::F acc[T][R];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[t][r] = S::zero();
  for (int k = 0; k < steps; ++k, x += 64 * T, packed += 64 * R) {
#pragma GCC unroll 1
    for (int r = ahead.begin; r < ahead.end; ++r) S::prefetch_far(rows[r] + static_cast<int64_t>(k) * E::kStep + ahead.elements);
    band_step<S, E, T>(acc, x, [&](int r) __attribute__((always_inline)) {
      if (!FIRST) return E::load_panel(packed + 64 * r);
      const auto w = E::load(rows[r] + static_cast<int64_t>(k) * E::kStep);
      E::store_panel(packed + 64 * r, w);
      return w;
    });
  }
  if (tail) {
    band_step<S, E, T>(acc, x, [&](int r) __attribute__((always_inline)) {
      if (!FIRST) return E::load_panel(packed + 64 * r);
      const auto w = E::load(rows[r] + static_cast<int64_t>(steps) * E::kStep, tail);
      E::store_panel(packed + 64 * r, w);
      return w;
    });
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    float* y = out + t * out_stride;
    float sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r += 4) S::sum4(acc[t][r], acc[t][r + 1], acc[t][r + 2], acc[t][r + 3], sums + r);
    for (int r = 0; r < R; ++r) y[r] = first ? sums[r] : y[r] + sums[r];
  }
}

template <class S, class E>
SIMD_INLINE void rows_tiles(const Panel<S>& panel, const typename E::Element* const* rows, int64_t ahead, int first_step, int steps, int tail,
                            float* out, int64_t out_stride, const Target& target) {
  alignas(64) uint8_t packed[kChunkSteps * S::kRowBand * 64];
  const int tiles = panel.tiles();
  int turn = 0;
  for (Tile tile = panel.head(); tile.count; tile = panel.next(tile), ++turn) {
    prefetch_target<S>(target, tile);
    const Ahead share{ahead, S::kRowBand * turn / tiles, S::kRowBand * (turn + 1) / tiles};
    const uint8_t* x = panel.data + panel.chunk_at(tile, first_step, steps + (tail != 0));
    float* y = out + tile.first * out_stride;
    const auto compute = [&](auto size) __attribute__((always_inline)) {
      constexpr int T = decltype(size)::value;
      if (turn == 0)
        rows_tile<S, E, T, true>(rows, packed, share, steps, tail, x, y, out_stride, first_step == 0);
      else
        rows_tile<S, E, T, false>(rows, packed, share, steps, tail, x, y, out_stride, first_step == 0);
    };
    switch (tile.size) {
      case 1: compute(std::integral_constant<int, 1>()); break;
      case 2: compute(std::integral_constant<int, 2>()); break;
      default:
        if constexpr (S::kRowTile > 2) compute(std::integral_constant<int, 3>());
    }
  }
}

template <class S, class E>
void rows_product_of(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  switch (panel.few() ? panel.tokens : 0) {
    case 1: return few_product<S, E, 1>(w, block, panel.data, out, out_stride);
    case 2: return few_product<S, E, 2>(w, block, panel.data, out, out_stride);
    case 3: return few_product<S, E, 3>(w, block, panel.data, out, out_stride);
    case 4: return few_product<S, E, 4>(w, block, panel.data, out, out_stride);
    case 5: return few_product<S, E, 5>(w, block, panel.data, out, out_stride);
    case 6: return few_product<S, E, 6>(w, block, panel.data, out, out_stride);
  }
  constexpr int R = S::kRowBand;
  const auto* data = static_cast<const typename E::Element*>(w.data);
  const int64_t K = w.cols;
  for (int band = 0; band < kRowBlock; band += R) {
    const int begin = block * kRowBlock + band;
    if (begin >= w.rows) break;
    const typename E::Element* rows[R];
    for (int step = 0; step < panel.steps; step += kChunkSteps) {
      const int64_t column = static_cast<int64_t>(step) * E::kStep;
      // Past the last row its predecessor stands in: a result that the caller drops.
      for (int r = 0; r < R; ++r) rows[r] = data + (begin + r < w.rows ? begin + r : w.rows - 1) * K + column;
      const int64_t left = K - column;
      const int steps = left >= kChunkSteps * E::kStep ? kChunkSteps : static_cast<int>(left / E::kStep);
      const int tail = steps == kChunkSteps ? 0 : static_cast<int>(left % E::kStep);
      const int64_t ahead = left > kChunkSteps * E::kStep ? kChunkSteps * E::kStep : R * K - column;
      float* y = out + band;
      const Target once = band == 0 && step == 0 ? target : Target{nullptr, 0};
      rows_tiles<S, E>(panel, rows, ahead, step, steps, tail, y, out_stride, once);
    }
  }
}

// Rows of one block times every token of the panel: out[token * out_stride + row].
template <class S>
void rows_product(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  switch (w.layout) {
    case Layout::F32: rows_product_of<S, FloatRows<S>>(w, block, panel, out, out_stride, target); break;
    case Layout::F16: rows_product_of<S, HalfRows<S>>(w, block, panel, out, out_stride, target); break;
    default: rows_product_of<S, Bfloat16Rows<S>>(w, block, panel, out, out_stride, target);
  }
}

}  // namespace inferloom
