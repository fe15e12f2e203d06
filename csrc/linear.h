// A weight matrix as the operators see it: a view, owned by whoever mapped the file. Layouts: layouts.md.
#pragma once
#include <cstddef>
#include <cstdint>

namespace inferloom {

enum class Layout : int32_t { F32 = 0, F16 = 1, BF16 = 2, Q8_32 = 3, Q8_ROW = 4, Q4_32 = 5, Q4S_32 = 6, Q4Z_32 = 7, Q8_HALVES = 8, Q4_DITHERED = 9 };
constexpr int32_t kLayouts = 10;

// A weight of Q4S_32 and Q4Z_32 is scale / kLevelsOfStep · (kLevelsOfStep · nibble + zero − kLevelBias).
constexpr int kLevelsOfStep = 4;
constexpr int kLevelBias = 62;
constexpr int kSymmetricZero = 30;  // of Q4S_32: scale · (nibble − 8)

// Of 16 rows and kHalvesGroup columns of Q8_HALVES: upper halves with their scales, lower halves.
constexpr int kHalvesGroup = 128;
constexpr int kHalvesLower = 16 * kHalvesGroup / 2;
constexpr int kHalvesUpper = kHalvesLower + 16 * 4;

constexpr int kRowBlock = 16;  // rows that a quantised layout interleaves, and lanes of a vector

struct Linear {
  Layout layout = Layout::BF16;
  int32_t rows = 0;             // N, output features; 0: there is no such matrix
  int32_t cols = 0;             // K, input features
  const void* data = nullptr;   // [N, K] row-major for float layouts, else packed
  const float* bias = nullptr;  // [N] or null

  bool present() const { return rows != 0; }
  bool quantised() const { return layout >= Layout::Q8_32; }
  int32_t blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
};

// Bytes of one block of 16 rows.
inline size_t block_bytes(const Linear& w) {
  const size_t k = static_cast<size_t>(w.cols);
  switch (w.layout) {
    case Layout::F32: return kRowBlock * k * 4;
    case Layout::F16:
    case Layout::BF16: return kRowBlock * k * 2;
    case Layout::Q8_32: return (k + 63) / 64 * 1088;
    case Layout::Q8_ROW: return (k + 127) / 128 * 128 * kRowBlock + 64;
    case Layout::Q8_HALVES: return (k + kHalvesGroup - 1) / kHalvesGroup * (kHalvesUpper + kHalvesLower);
    case Layout::Q4_32: return (k + 31) / 32 * 320;
    case Layout::Q4S_32:
    case Layout::Q4Z_32:
    case Layout::Q4_DITHERED: return (k + 63) / 64 * 576;
  }
  return 0;
}

// A block's bytes; of Q8_HALVES its upper halves. The lower halves of all blocks lie behind the upper ones of all.
inline const uint8_t* block_of(const Linear& w, int32_t block) {
  const size_t whole = block_bytes(w), upper = whole / (kHalvesUpper + kHalvesLower) * kHalvesUpper;
  return static_cast<const uint8_t*>(w.data) + static_cast<size_t>(block) * (w.layout == Layout::Q8_HALVES ? upper : whole);
}

// The lower halves of a block of Q8_HALVES.
inline const uint8_t* lower_of(const Linear& w, int32_t block) {
  const size_t groups = block_bytes(w) / (kHalvesUpper + kHalvesLower);
  return block_of(w, w.blocks()) + static_cast<size_t>(block) * groups * kHalvesLower;
}

}  // namespace inferloom
