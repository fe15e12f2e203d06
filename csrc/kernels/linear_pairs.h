// Products of row-major bfloat16 weights on processors with a pairwise dot product: 16 rows × T tokens at a time. A vector holds 8
// columns of four rows, a quarter each, and the tokens' 8 columns are repeated in every quarter. A sum has four lanes so, which
// three additions of vectors reduce for 16 rows at once: 9 instructions for 16 results, where 16 lanes (linear_rows.h) take about 50.
//
// The order of a sum depends on K alone: pairs of a lane in turn, the lanes, then chunks of 512 columns in turn.
#pragma once
#include "linear_panel.h"

namespace inferloom {

constexpr int kPairSteps = 16;   // of 32 columns: a chunk of 16 rows is 16 KB, half of the first-level cache

// 512 columns of a block, or what is left of them: whole steps, then `tail` columns of one more.
struct PairChunk {
  const uint16_t* rows[kRowBlock];  // at the chunk's first column
  int64_t ahead;                    // elements from here to the chunk that is computed next
  int steps, tail;
  int ask_begin, ask_end;           // rows of it that a tile asks for: the tiles of a panel have a share each
  bool first;
};

template <class S>
SIMD_INLINE void ask_ahead(const PairChunk& chunk, int k) {
#pragma GCC unroll 1
  for (int r = chunk.ask_begin; r < chunk.ask_end; ++r) S::prefetch_far(chunk.rows[r] + 32 * k + chunk.ahead);
}

// Rows v, v + 4, v + 8, v + 12 at step k: q[i] = columns 8 i … 8 i + 7 of each.
template <class S>
SIMD_INLINE void quarter_rows(const PairChunk& chunk, int k, int v, int count, typename S::H (&q)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint16_t* p = chunk.rows[v + 4 * i] + 32 * k;
    q[i] = count >= 32 ? S::load_pairs(p) : S::load_pairs(p, count);
  }
  S::transpose_quarters(q);
}

// The sums of 16 rows for T tokens, to out[t * out_stride + row] or added to it.
template <class S, int T>
SIMD_INLINE void store_quarters(const typename S::F (&acc)[4][T], float* out, int64_t out_stride, bool first) {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const auto sum = S::sum_quarters(acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
    float* y = out + t * out_stride;
    S::store(y, first ? sum : S::add(S::load(y), sum));
  }
}

template <class S, int T>
SIMD_INLINE void clear_quarters(typename S::F (&acc)[4][T]) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[v][t] = S::zero();
}

// A chunk straight from its rows, for a panel of one tile: the next chunk is asked for meanwhile.
template <class S, int T>
SIMD_INLINE void rows_step(const PairChunk& chunk, int k, int count, const uint8_t* x, typename S::F (&acc)[4][T]) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) S::prefetch_far(chunk.rows[v + 4 * i] + 32 * k + chunk.ahead);
    typename S::H w[4];
    quarter_rows<S>(chunk, k, v, count, w);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[v][t] = S::bf16_dot(acc[v][t], w[i], S::repeat_quarter(x + 64 * t + 16 * i));
  }
}

template <class S, int T>
void only_tile(const PairChunk& chunk, const uint8_t* x, float* out, int64_t out_stride) {
  typename S::F acc[4][T];
  clear_quarters<S, T>(acc);
  for (int k = 0; k < chunk.steps; ++k) rows_step<S, T>(chunk, k, 32, x + 64 * T * k, acc);
  if (chunk.tail) rows_step<S, T>(chunk, chunk.steps, chunk.tail, x + 64 * T * chunk.steps, acc);
  store_quarters<S, T>(acc, out, out_stride, chunk.first);
}

// A step of a chunk to ordered[step][quarter of 8 columns][v][64 bytes], columns past the last as zeros.
template <class S>
SIMD_INLINE void order_step(const PairChunk& chunk, int k, uint8_t* ordered) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    typename S::H w[4];
    quarter_rows<S>(chunk, k, v, k < chunk.steps ? 32 : chunk.tail, w);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) S::store_pairs(reinterpret_cast<uint16_t*>(ordered + 1024 * k + 64 * (4 * i + v)), w[i]);
  }
}

// One of a panel's tiles. The first one (FIRST) orders the weights, a step ahead of its own products, which hide that.
template <class S, int T, bool FIRST>
void ordered_tile(const PairChunk& chunk, uint8_t* ordered, const uint8_t* x, float* out, int64_t out_stride) {
  typename S::F acc[4][T];
  clear_quarters<S, T>(acc);
  const int steps = chunk.steps + (chunk.tail != 0);
  if (FIRST) order_step<S>(chunk, 0, ordered);
  for (int k = 0; k < steps; ++k, x += 64 * T) {
    ask_ahead<S>(chunk, k);
    if (FIRST && k + 1 < steps) order_step<S>(chunk, k + 1, ordered);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      typename S::H w[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = S::load_pairs(reinterpret_cast<const uint16_t*>(ordered + 1024 * k + 64 * (4 * i + v)));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const auto columns = S::repeat_quarter(x + 64 * t + 16 * i);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) acc[v][t] = S::bf16_dot(acc[v][t], w[v], columns);
      }
    }
  }
  store_quarters<S, T>(acc, out, out_stride, chunk.first);
}

// Rows of one block times every token of the panel: out[token * out_stride + row].
template <class S>
void pairs_product(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  const auto* data = static_cast<const uint16_t*>(w.data);
  const int64_t K = w.cols;
  const int begin = block * kRowBlock, tiles = (panel.tokens + kPairTile - 1) / kPairTile;
  alignas(64) uint8_t ordered[kPairSteps * 1024];
  PairChunk chunk;
  for (int step = 0; step < panel.steps; step += kPairSteps) {
    const int64_t column = 32 * static_cast<int64_t>(step), left = K - column;
    // Past the last row it stands in itself: results that the caller drops.
    for (int r = 0; r < kRowBlock; ++r) chunk.rows[r] = data + (begin + r < w.rows ? begin + r : w.rows - 1) * K + column;
    chunk.ahead = left > 32 * kPairSteps ? 32 * kPairSteps : kRowBlock * K - column;
    chunk.steps = left >= 32 * kPairSteps ? kPairSteps : static_cast<int>(left / 32);
    chunk.tail = chunk.steps == kPairSteps ? 0 : static_cast<int>(left % 32);
    chunk.first = step == 0;
    int turn = 0;
    for (Tile tile = panel.head(); tile.count; tile = panel.next(tile), ++turn) {
      chunk.ask_begin = kRowBlock * turn / tiles;
      chunk.ask_end = kRowBlock * (turn + 1) / tiles;
      if (chunk.first) prefetch_target<S>(target, tile);
      const uint8_t* x = panel.data + tile.begin + 64 * static_cast<int64_t>(step) * tile.size;
      float* y = out + tile.first * out_stride;
      if (tile.count == panel.tokens) {  // alone: nobody reads the weights again
        switch (tile.size) {
          case 1: only_tile<S, 1>(chunk, x, y, out_stride); break;
          case 2: only_tile<S, 2>(chunk, x, y, out_stride); break;
          case 3: only_tile<S, 3>(chunk, x, y, out_stride); break;
          case 4: only_tile<S, 4>(chunk, x, y, out_stride); break;
          case 5: only_tile<S, 5>(chunk, x, y, out_stride); break;
          case 6: only_tile<S, 6>(chunk, x, y, out_stride); break;
        }
      } else if (tile.first == 0) {  // tiles are alike, so that none has fewer tokens than these
        switch (tile.size) {
          case 4: ordered_tile<S, 4, true>(chunk, ordered, x, y, out_stride); break;
          case 5: ordered_tile<S, 5, true>(chunk, ordered, x, y, out_stride); break;
          case 6: ordered_tile<S, 6, true>(chunk, ordered, x, y, out_stride); break;
        }
      } else {
        switch (tile.size) {
          case 3: ordered_tile<S, 3, false>(chunk, ordered, x, y, out_stride); break;
          case 4: ordered_tile<S, 4, false>(chunk, ordered, x, y, out_stride); break;
          case 5: ordered_tile<S, 5, false>(chunk, ordered, x, y, out_stride); break;
          case 6: ordered_tile<S, 6, false>(chunk, ordered, x, y, out_stride); break;
        }
      }
    }
  }
}

}  // namespace inferloom
