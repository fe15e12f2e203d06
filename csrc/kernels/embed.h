// Rows of an embedding table, which may be any weight layout (a tied output matrix serves both).
#pragma once
#include "../dither.h"
#include "../isa/simd.h"
#include "../linear.h"

namespace inferloom {

// y[k] = factor · row[k] of a table in Q8_HALVES.
SIMD_INLINE void embed_halves(const Linear& table, int32_t id, float factor, float* y) {
  const uint8_t *upper = block_of(table, id / kRowBlock), *lower = lower_of(table, id / kRowBlock);
  const int row = id % kRowBlock;
  float scale = 0;
  for (int k = 0; k < table.cols; ++k) {
    if (k % kHalvesGroup == 0) {
      if (k) upper += kHalvesUpper, lower += kHalvesLower;
      std::memcpy(&scale, upper + kHalvesLower + 4 * row, 4);
      scale *= factor;
    }
    const int at = k % kHalvesGroup / 32 * 256 + 64 * (k % 16 / 4) + 4 * row + k % 4, shift = k % 32 < 16 ? 0 : 4;
    const int byte = (upper[at] >> shift & 15) << 4 | (lower[at] >> shift & 15);
    y[k] = scale * static_cast<float>(byte - kDitherBias - kDither.whole[k]);
  }
}

// The same of the other quantised layouts. A row's bytes lie four columns at a time, 64 bytes apart.
template <class S>
SIMD_INLINE void embed_quantised(const Linear& table, int32_t id, float factor, float* y) {
  const uint8_t* block = block_of(table, id / kRowBlock);
  const int row = id % kRowBlock;
  for (int k = 0; k < table.cols; k += 32) {
    const int n = table.cols - k < 32 ? table.cols - k : 32;
    float value[32], scale[16], minimum[16];
    const uint8_t* quads;
    bool nibbles = false;
    switch (table.layout) {
      case Layout::Q4_32:
        quads = block + k / 32 * 320;
        S::store(scale, S::load_f16(reinterpret_cast<const uint16_t*>(quads + 256)));
        S::store(minimum, S::load_f16(reinterpret_cast<const uint16_t*>(quads + 288)));
        nibbles = true;
        break;
      case Layout::Q4S_32:
      case Layout::Q4Z_32: {
        quads = block + k / 64 * 576 + k % 64 / 32 * 256;
        const auto* halves = reinterpret_cast<const uint16_t*>(block + k / 64 * 576 + 512 + k % 64 / 32 * 32);
        S::store(scale, S::load_f16(halves));
        const int zero = table.layout == Layout::Q4Z_32 ? halves[row] & 63 : kSymmetricZero;
        minimum[row] = scale[row] * static_cast<float>(zero - kLevelBias) * (1.0f / kLevelsOfStep);
        nibbles = true;
        break;
      }
      case Layout::Q8_32:
        quads = block + k / 64 * 1088 + k % 64 / 32 * 512;
        S::store(scale, S::load_f16(reinterpret_cast<const uint16_t*>(block + k / 64 * 1088 + 1024 + k % 64 / 32 * 32)));
        break;
      default:
        quads = block + static_cast<size_t>(k) * kRowBlock;
        std::memcpy(scale, block + block_bytes(table) - 64, 64);
        break;
    }
    const float s = scale[row] * factor, m = nibbles ? minimum[row] * factor : 0.0f;
    for (int i = 0; i < n; ++i) {
      const int quad = nibbles ? i / 4 % 4 : i / 4;
      const int byte = quads[64 * quad + 4 * row + i % 4];
      const int level = !nibbles ? byte - 128 : i < 16 ? byte & 15 : byte >> 4;
      value[i] = s * static_cast<float>(level) + m;
    }
    std::memcpy(y + k, value, static_cast<size_t>(n) * 4);
  }
}

template <class S>
void embed(const Linear& table, const int32_t* ids, float factor, float* output, int64_t stride, int row_begin, int row_end) {
  const auto f = S::set(factor);
  for (int m = row_begin; m < row_end; ++m) {
    float* y = output + m * stride;
    const size_t first = static_cast<size_t>(ids[m]) * static_cast<size_t>(table.cols);
    if (table.layout == Layout::Q8_HALVES) {
      embed_halves(table, ids[m], factor, y);
      continue;
    }
    if (table.quantised()) {
      embed_quantised<S>(table, ids[m], factor, y);
      continue;
    }
    for (int k = 0; k < table.cols; k += 16) {
      const int n = table.cols - k < 16 ? table.cols - k : 16;
      const auto at = first + static_cast<size_t>(k);
      typename S::F v;
      if (table.layout == Layout::F32)
        v = S::load(static_cast<const float*>(table.data) + at, n);
      else if (table.layout == Layout::F16)
        v = S::load_f16(static_cast<const uint16_t*>(table.data) + at, n);
      else
        v = S::load_bf16(static_cast<const uint16_t*>(table.data) + at, n);
      S::store(y + k, S::mul(v, f), n);
    }
  }
}

}  // namespace inferloom
