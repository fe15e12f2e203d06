// The input of a linear layer, copied to the order in which its kernel reads it. A panel holds a few dozen tokens (what fits the
// second-level cache) as tiles of up to `S::kTile` tokens; within a tile all that one step of the kernel needs lies together, so
// that its loads differ by constants and follow each other in memory.
#pragma once
#include "../activations.h"
#include "../dither.h"
#include "../isa/simd.h"
#include "../linear.h"

namespace inferloom {

constexpr int kPanelBytes = 512 * 1024;  // half of a second-level cache: weights and results pass through the rest
constexpr int kPanelTokens = 256;
constexpr int kChunkSteps = 32;  // of row-major weights: a panel has all tiles' activations for one chunk side by side

enum class PanelKind {
  NIBBLES,     // per 32 columns: int8 [T][32], scales [T], scaled sums [T]
  BYTES,       // per 32 columns: int8 [T][32], scales [T], −bias × sums [T] (int32)
  BYTES_128,   // per group of 128: int8 [32 quads][T][4], scales [T], −bias × sums [T] (int32)
  LEVELS,      // per group: for each 32 columns int8 [T][32], −kLevelBias × sums [T] (int32); then scales / kLevelsOfStep [T];
               // for `few_tokens` kLevelsOfStep × sums, and scales as they are
  PAIRS,       // per chunk, then tile, then step of 32 columns: bfloat16 [T][32]
  FLOATS,      // per chunk, then tile, then step of 16 columns: float [T][16]
};

inline constexpr PanelKind panel_kind(Layout layout, int group) {
  switch (layout) {
    case Layout::F32:
    case Layout::F16: return PanelKind::FLOATS;
    case Layout::BF16: return PanelKind::PAIRS;
    case Layout::Q4_32: return PanelKind::NIBBLES;
    case Layout::Q4S_32:
    case Layout::Q4Z_32: return PanelKind::LEVELS;
    case Layout::Q8_ROW:
    case Layout::Q8_HALVES: return group == 128 ? PanelKind::BYTES_128 : PanelKind::BYTES;
    default: return PanelKind::BYTES;
  }
}

SIMD_INLINE bool row_major(PanelKind kind) { return kind == PanelKind::PAIRS || kind == PanelKind::FLOATS; }

// Tokens of a tile: kernels exist for these numbers, a tile of another one is completed with tokens of zeros.
template <class S>
SIMD_INLINE int tile_size(PanelKind kind, int tokens) {
  if (row_major(kind)) return tokens;
  return tokens <= 4 ? tokens : (tokens + 1) / 2 * 2;
}

struct Tile {
  int first;     // of the panel's tokens
  int count;     // tokens, at most `size`
  int size;      // tokens that the kernel computes
  size_t begin;  // bytes from the panel's beginning
};

// Tiles of so few tokens that the unpacking of 4-bit weights is what takes long: kernels unpack less and compute more for them.
template <class S>
constexpr bool few_tokens(int T) {
  return S::kByteDot && T <= 3;
}

// A view of one panel: walk it with `for (Tile t = panel.head(); t.count; t = panel.next(t))`.
template <class S>
struct Panel {
  PanelKind kind;
  bool dithered;  // the weight is Q8_HALVES: its dither comes off the sums
  int tokens;
  int cols;       // of the weight: K
  int steps;      // along K
  int group;      // columns that share a scale
  size_t token_bytes;
  const uint8_t* data;

  // Row-major weights are taken one row after the other as long as the activations stay in the first-level cache.
  bool few() const { return row_major(kind) && (tokens <= 2 || (tokens <= 6 && tokens * steps <= 384)); }
  int limit() const { return few() ? tokens : row_major(kind) ? S::kRowTile : S::kTile; }

  Tile tile_at(int first, size_t begin) const {
    const int left = tokens - first;
    if (left <= 0) return {first, 0, 0, begin};
    const int limit = this->limit(), tiles = (left + limit - 1) / limit, count = (left + tiles - 1) / tiles;
    return {first, count, tile_size<S>(kind, count), begin};
  }
  int tiles() const { return (tokens + limit() - 1) / limit(); }
  Tile head() const { return tile_at(0, 0); }
  Tile next(const Tile& t) const { return tile_at(t.first + t.count, t.begin + static_cast<size_t>(t.size) * token_bytes); }
  // Of a row-major panel: where a tile's part of a chunk begins. `count`: steps of the chunk.
  size_t chunk_at(const Tile& t, int step, int count) const { return 64 * (static_cast<size_t>(step) * tokens + static_cast<size_t>(t.first) * count); }
};

// Where results go after the product: asked for early, since storing to a line that is not in the cache waits for it.
struct Target {
  const float* output;  // of the panel's first token and the block's first row; null: nowhere yet
  int64_t stride;
};

template <class S>
SIMD_INLINE void prefetch_target(const Target& target, const Tile& tile) {
  if (!target.output) return;
  for (int t = 0; t < tile.count; ++t) S::prefetch_far(target.output + (tile.first + t) * target.stride);
}

// Weights are asked for so many bytes ahead, into the second level: its queue of misses is longer than the first level's. Near ahead where
// `tokens` take so little time that the processor itself reads ahead in a stream (`most`: up to how many that is), which a request for
// far lines disturbs; far ahead where it does not. One token, two threads on Zen 4, GB/s of 4-bit weights: 57 … 63 so, 41 with 5 KB.
constexpr int kFarAhead = 8192;
SIMD_INLINE constexpr int ahead_of(int tokens, int most) { return tokens <= most ? 1024 : kFarAhead; }

// The shape of a panel for this weight, without tokens or data.
template <class S>
SIMD_INLINE Panel<S> panel_shape(const Linear& w, const Activations& x) {
  Panel<S> p{panel_kind(w.layout, x.group), w.layout == Layout::Q8_HALVES, 0, w.cols, 0, x.group, 0, nullptr};
  const int k = p.kind == PanelKind::LEVELS ? (w.cols + 63) / 64 * 64 : w.cols;
  const auto cut = [&p, k](int cols, int bytes) __attribute__((always_inline)) {
    p.steps = (k + cols - 1) / cols;
    p.token_bytes = static_cast<size_t>(p.steps) * static_cast<size_t>(bytes);
  };
  switch (p.kind) {
    case PanelKind::NIBBLES:
    case PanelKind::BYTES: cut(32, 40); break;
    case PanelKind::BYTES_128: cut(128, 136); break;
    case PanelKind::LEVELS: cut(x.group, x.group / 32 * 36 + 4); break;
    case PanelKind::PAIRS: cut(32, 64); break;
    case PanelKind::FLOATS: cut(16, 64); break;
  }
  return p;
}

// The most tokens that a panel of `bytes` holds: whole tiles where there is room for one.
template <class S>
SIMD_INLINE int panel_capacity(const Panel<S>& shape, size_t bytes, int most) {
  const size_t fit = bytes / shape.token_bytes;
  const int limit = row_major(shape.kind) ? S::kRowTile : S::kTile, n = fit < static_cast<size_t>(most) ? static_cast<int>(fit) : most;
  if (n >= limit) return n / limit * limit;
  return n > 4 ? n / 2 * 2 : n;
}

// Tokens of the next panel, of `left` ones: panels alike, for a last one of a few tokens would read all weights for little.
SIMD_INLINE int panel_share(int left, int capacity) {
  const int panels = (left + capacity - 1) / capacity;
  return (left + panels - 1) / panels;
}

// What Q8_HALVES has added to the sum of `count` columns from `column` on, less what its bytes' bias is short of 128.
SIMD_INLINE int32_t dither_sum(const int8_t* q, int column, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += q[i] * (kDither.whole[column + i] + kDitherBias - 128);
  return sum;
}

// One step of one token: bytes, scales and sums to their places in a tile of T.
template <class S>
SIMD_INLINE void fill_group(PanelKind kind, bool dithered, const Activations& x, int64_t row, int g, int t, int T, uint8_t* step) {
  const int8_t* q = x.q8 + row * x.stride + 32 * g;
  std::memcpy(step + 32 * t, q, 32);
  const int64_t at = row * x.sums() + g;
  const int32_t start = -S::kByteBias * x.sum[at] - (dithered ? dither_sum(q, 32 * g, 32) : 0);
  std::memcpy(step + 32 * T + 4 * t, x.scale + row * x.groups() + 32 * g / x.group, 4);
  std::memcpy(step + 36 * T + 4 * t, kind == PanelKind::NIBBLES ? static_cast<const void*>(x.scaled_sum + at) : &start, 4);
}

template <class S>
SIMD_INLINE void fill_group_128(bool dithered, const Activations& x, int64_t row, int g, int t, int T, uint8_t* step) {
  const int8_t* q = x.q8 + row * x.stride + 128 * g;
  for (int quad = 0; quad < 32; ++quad) std::memcpy(step + 4 * (quad * T + t), q + 4 * quad, 4);
  const int32_t* sum = x.sum + row * x.sums() + 4 * g;
  const int32_t start = -S::kByteBias * (sum[0] + sum[1] + sum[2] + sum[3]) - (dithered ? dither_sum(q, 128 * g, 128) : 0);
  std::memcpy(step + 128 * T + 4 * t, x.scale + row * x.groups() + g, 4);
  std::memcpy(step + 132 * T + 4 * t, &start, 4);
}

template <class S>
SIMD_INLINE void fill_levels(const Activations& x, int64_t row, int g, int t, int T, uint8_t* step) {
  const int n = x.group / 32, factor = few_tokens<S>(T) ? kLevelsOfStep : -kLevelBias;
  for (int i = 0; i < n; ++i, step += 36 * T) {
    std::memcpy(step + 32 * t, x.q8 + row * x.stride + 32 * (n * g + i), 32);
    const int32_t sum = factor * x.sum[row * x.sums() + n * g + i];
    std::memcpy(step + 32 * T + 4 * t, &sum, 4);
  }
  const float scale = x.scale[row * x.groups() + g] * (few_tokens<S>(T) ? 1.0f : 1.0f / kLevelsOfStep);
  std::memcpy(step + 4 * t, &scale, 4);
}

template <class S>
SIMD_INLINE void fill_rows(const Panel<S>& panel, const Activations& x, int row, uint8_t* data) {
  for (Tile tile = panel.head(); tile.count; tile = panel.next(tile)) {
    for (int t = 0; t < tile.count; ++t) {
      const int64_t at = (row + tile.first + t) * static_cast<int64_t>(x.stride);
      const auto* from = panel.kind == PanelKind::PAIRS ? reinterpret_cast<const uint8_t*>(x.bf16 + at) : reinterpret_cast<const uint8_t*>(x.f32 + at);
      for (int step = 0; step < panel.steps; step += kChunkSteps) {
        const int count = panel.steps - step < kChunkSteps ? panel.steps - step : kChunkSteps;
        uint8_t* to = data + panel.chunk_at(tile, step, count) + 64 * t;
        for (int k = 0; k < count; ++k) std::memcpy(to + 64 * k * tile.size, from + 64 * (step + k), 64);
      }
    }
  }
}

// Rows [row, row + panel.tokens) of `x` to `data`.
template <class S>
void fill_panel(Panel<S>& panel, const Activations& x, int row, uint8_t* data) {
  panel.data = data;
  if (row_major(panel.kind)) return fill_rows<S>(panel, x, row, data);
  for (Tile tile = panel.head(); tile.count; tile = panel.next(tile)) {
    const int T = tile.size;
    const size_t step_bytes = panel.token_bytes / static_cast<size_t>(panel.steps) * static_cast<size_t>(T);
    uint8_t* to = data + tile.begin;
    if (tile.count < T) std::memset(to, 0, panel.token_bytes * static_cast<size_t>(T));
    for (int t = 0; t < tile.count; ++t) {
      const int64_t m = row + tile.first + t;
      uint8_t* step = to;
      for (int g = 0; g < panel.steps; ++g, step += step_bytes) {
        switch (panel.kind) {
          case PanelKind::NIBBLES:
          case PanelKind::BYTES: fill_group<S>(panel.kind, panel.dithered, x, m, g, t, T, step); break;
          case PanelKind::BYTES_128: fill_group_128<S>(panel.dithered, x, m, g, t, T, step); break;
          case PanelKind::LEVELS: fill_levels<S>(x, m, g, t, T, step); break;
          default: break;  // filled above
        }
      }
    }
  }
}

}  // namespace inferloom
