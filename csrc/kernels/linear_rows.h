// Products of row-major float weights: a band of rows × T tokens at a time. Lanes are columns; a sum is reduced across lanes at the
// end of each chunk of 32 steps (2 KB of bfloat16 or float32), so that a band's chunk stays in the first-level cache while all tokens
// pass by. The order of a sum depends on K alone: lanes, the tree of `sum4`, chunks in turn.
// bfloat16 weights go through linear_pairs.h instead where the processor has a dot product of pairs.
#pragma once
#include "linear_pairs.h"

namespace inferloom {

constexpr int kChunkSteps = 32;
constexpr int kPackTokens = 24;  // from here on a chunk of weights is copied: no lines split, no rows a power of two apart

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

// One chunk of a band: `rows` are its pointers at the chunk's beginning; whole steps, then `tail` columns of one more (unpacked alone:
// packed chunks are completed with zeros). out[t * out_stride + r] = or += the sums.
template <class S, class E, int T, bool PACKED>
void rows_tile(const typename E::Element* const* rows, const uint8_t* packed, int64_t ahead, int steps, int tail, const uint8_t* x,
               float* out, int64_t out_stride, bool first) {
  constexpr int R = S::kRowBand;
  typename S::F acc[T][R];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[t][r] = S::zero();
  for (int k = 0; k < steps; ++k, x += 64 * T) {
    typename E::W v[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) v[t] = E::load_panel(x + 64 * t);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (!PACKED) S::prefetch_far(rows[r] + static_cast<int64_t>(k) * E::kStep + ahead);
      const auto w = PACKED ? E::load_panel(packed + 64 * (static_cast<int64_t>(k) * R + r))
                            : E::load(rows[r] + static_cast<int64_t>(k) * E::kStep);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][r] = E::step(acc[t][r], w, v[t]);
    }
  }
  if (!PACKED && tail) {
    typename E::W v[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) v[t] = E::load_panel(x + 64 * t);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto w = E::load(rows[r] + static_cast<int64_t>(steps) * E::kStep, tail);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][r] = E::step(acc[t][r], w, v[t]);
    }
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

// Copies a chunk of a band to [step][row][64 bytes], the last step completed with zeros.
template <class S, class E>
SIMD_INLINE void pack_chunk(const typename E::Element* const* rows, int steps, int tail, uint8_t* packed) {
  constexpr int R = S::kRowBand;
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < steps; ++k) E::store_panel(packed + 64 * (k * R + r), E::load(rows[r] + k * E::kStep));
  if (!tail) return;
  for (int r = 0; r < R; ++r) E::store_panel(packed + 64 * (steps * R + r), E::load(rows[r] + steps * E::kStep, tail));
}

template <class S, class E, bool PACKED>
SIMD_INLINE void rows_tiles(const Panel<S>& panel, const typename E::Element* const* rows, const uint8_t* packed, int64_t ahead,
                            int first_step, int steps, int tail, float* out, int64_t out_stride, const Target& target) {
  // Packed chunks: the band after this one is asked for a few lines at a time.
  const int lines = S::kRowBand * steps, tiles = (panel.tokens + S::kRowTile - 1) / S::kRowTile, share = (lines + tiles - 1) / tiles;
  int line = 0;
  for (Tile tile = panel.head(); tile.count; tile = panel.next(tile)) {
    prefetch_target<S>(target, tile);
    for (int end = line + share < lines ? line + share : lines; PACKED && line < end; ++line)
      S::prefetch_far(rows[line / steps] + ahead + line % steps * E::kStep);
    const uint8_t* x = panel.data + tile.begin + 64 * static_cast<int64_t>(first_step) * tile.size;
    float* y = out + tile.first * out_stride;
    const bool first = first_step == 0;
    switch (tile.size) {
      case 1: rows_tile<S, E, 1, PACKED>(rows, packed, ahead, steps, tail, x, y, out_stride, first); break;
      case 2: rows_tile<S, E, 2, PACKED>(rows, packed, ahead, steps, tail, x, y, out_stride, first); break;
      default:
        if constexpr (S::kRowTile > 2) rows_tile<S, E, 3, PACKED>(rows, packed, ahead, steps, tail, x, y, out_stride, first);
    }
  }
}

template <class S, class E>
void rows_product_of(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  constexpr int R = S::kRowBand;
  const auto* data = static_cast<const typename E::Element*>(w.data);
  const int64_t K = w.cols;
  alignas(64) uint8_t packed[kChunkSteps * R * 64];
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
      float* y = out + band;
      const Target once = band == 0 && step == 0 ? target : Target{nullptr, 0};
      if (panel.tokens >= kPackTokens) {
        pack_chunk<S, E>(rows, steps, tail, packed);
        rows_tiles<S, E, true>(panel, rows, packed, R * K, step, steps + (tail != 0), 0, y, out_stride, once);
      } else {
        rows_tiles<S, E, false>(panel, rows, nullptr, R * K, step, steps, tail, y, out_stride, once);
      }
    }
  }
}

// Rows of one block times every token of the panel: out[token * out_stride + row].
template <class S>
void rows_product(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  switch (w.layout) {
    case Layout::F32: rows_product_of<S, FloatRows<S>>(w, block, panel, out, out_stride, target); break;
    case Layout::F16: rows_product_of<S, HalfRows<S>>(w, block, panel, out, out_stride, target); break;
    default:
      if constexpr (S::kBf16Dot)
        pairs_product<S>(w, block, panel, out, out_stride, target);
      else
        rows_product_of<S, Bfloat16Rows<S>>(w, block, panel, out, out_stride, target);
  }
}

}  // namespace inferloom
