// Random weights in every layout, with the values that they stand for, and activations in all forms: for linear_test.cpp and
// bench_linear.cpp.
#pragma once
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../dither.h"
#include "../operators.h"

namespace inferloom {

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f; }  // −1 … 1
 private:
  uint64_t state_;
};

inline float from_bf16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline float from_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float magnitude = exponent ? std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25) : std::ldexp(static_cast<float>(mantissa), -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

// Memory whose end is the end of what was asked for (an over-read is seen by the address sanitizer), at a multiple of 64 bytes.
struct Memory {
  explicit Memory(size_t bytes) : base(static_cast<uint8_t*>(std::malloc(bytes + 64))) {
    data = base.get() + (64 - reinterpret_cast<uintptr_t>(base.get()) % 64) % 64;
    std::memset(data, 0, bytes);
  }
  struct Free { void operator()(uint8_t* p) const { std::free(p); } };
  std::unique_ptr<uint8_t, Free> base;
  uint8_t* data;
};

struct Matrix {
  Linear view;
  std::vector<float> values;  // [N, K], what the bytes mean; empty where not asked for
  std::vector<float> bias;
  std::unique_ptr<Memory> memory;
};

inline Matrix random_matrix(Layout layout, int rows, int cols, Random& random, bool with_bias, bool with_values) {
  Matrix m;
  m.view = {layout, rows, cols, nullptr, nullptr};
  const size_t n = static_cast<size_t>(rows), k = static_cast<size_t>(cols);
  const size_t bytes = m.view.quantised() ? block_bytes(m.view) * static_cast<size_t>(m.view.blocks())
                                          : n * k * (layout == Layout::F32 ? 4 : 2);
  // Row-major data at an odd place, as in a mapped file.
  const size_t shift = m.view.quantised() ? 0 : layout == Layout::F32 ? 4 : 2;
  m.memory = std::make_unique<Memory>(bytes + shift);
  uint8_t* data = m.memory->data + shift;
  m.view.data = data;
  if (with_values) m.values.assign(n * k, 0.0f);
  if (with_bias) {
    for (int i = 0; i < rows; ++i) m.bias.push_back(random.uniform());
    m.view.bias = m.bias.data();
  }
  if (!m.view.quantised()) {
    for (size_t i = 0; i < n * k; ++i) {
      const float f = random.uniform();
      uint16_t h = to_bf16(f);
      if (layout == Layout::F16) h = static_cast<uint16_t>((h & 0x8000) | (random.next() & 0x3bff));  // below 1, subnormals too
      if (layout == Layout::F32) std::memcpy(data + 4 * i, &f, 4); else std::memcpy(data + 2 * i, &h, 2);
      if (with_values) m.values[i] = layout == Layout::F32 ? f : layout == Layout::F16 ? from_f16(h) : from_bf16(h);
    }
    return m;
  }
  // Any bytes are a valid packed matrix; scales are kept between 2^-7 and 2^-6, minima at minus eight times that.
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t z = random.next();
    std::memcpy(data + i, &z, 8);
  }
  const auto scale = [&](uint8_t* p, bool negative) {
    const uint16_t h = static_cast<uint16_t>((random.next() & 1023) | (negative ? 0x8000 + 0x2c00 : 0x2000));
    std::memcpy(p, &h, 2);
  };
  const size_t block = block_bytes(m.view);
  for (int b = 0; b < m.view.blocks(); ++b) {
    uint8_t* p = data + (block_of(m.view, b) - data);
    const auto sixteen = [&](uint8_t* scales) {
      for (size_t r = 0; r < 16; ++r) {
        const float f = (2.0f + random.uniform()) * 0x1p-8f;
        std::memcpy(scales + 4 * r, &f, 4);
      }
    };
    if (layout == Layout::Q8_ROW) sixteen(p + block - 64);
    for (size_t g = 0; layout == Layout::Q8_HALVES && g < (k + 127) / 128; ++g) sixteen(p + g * kHalvesUpper + kHalvesLower);
    for (size_t at = 0; layout == Layout::Q4_32 && at < block; at += 320)
      for (int r = 0; r < 16; ++r) { scale(p + at + 256 + 2 * r, false); scale(p + at + 288 + 2 * r, true); }
    for (size_t at = 0; (layout == Layout::Q4S_32 || layout == Layout::Q4Z_32 || layout == Layout::Q4_DITHERED) && at < block; at += 576)
      for (int r = 0; r < 32; ++r) scale(p + at + 512 + 2 * r, false);
    for (size_t at = 0; layout == Layout::Q8_32 && at < block; at += 1088)
      for (int r = 0; r < 32; ++r) scale(p + at + 1024 + 2 * r, false);
  }
  const auto half_at = [](const uint8_t* p) { uint16_t h; std::memcpy(&h, p, 2); return from_f16(h); };
  for (size_t i = 0; with_values && i < n; ++i) {
    const auto number = static_cast<int32_t>(i / 16);
    const uint8_t* p = block_of(m.view, number);
    const size_t r = i % 16;
    for (size_t c = 0; c < k; ++c) {
      float value;
      if (layout == Layout::Q4_32) {
        const uint8_t* g = p + c / 32 * 320;
        const int byte = g[64 * (c % 16 / 4) + 4 * r + c % 4], nibble = c % 32 < 16 ? byte & 15 : byte >> 4;
        value = half_at(g + 256 + 2 * r) * static_cast<float>(nibble) + half_at(g + 288 + 2 * r);
      } else if (layout == Layout::Q4S_32 || layout == Layout::Q4Z_32) {
        const uint8_t *g = p + c / 64 * 576, *half = g + 512 + c % 64 / 32 * 32 + 2 * r;
        const int byte = g[c % 64 / 32 * 256 + 64 * (c % 16 / 4) + 4 * r + c % 4], nibble = c % 32 < 16 ? byte & 15 : byte >> 4;
        const int quarters = layout == Layout::Q4S_32 ? 4 * nibble - 32 : 4 * nibble + (half[0] & 63) - 62;
        value = half_at(half) * static_cast<float>(quarters) / 4;
      } else if (layout == Layout::Q8_32) {
        const uint8_t* g = p + c / 64 * 1088;
        value = half_at(g + 1024 + c % 64 / 32 * 32 + 2 * r) * static_cast<float>(g[64 * (c % 64 / 4) + 4 * r + c % 4] - 128);
      } else if (layout == Layout::Q8_HALVES) {
        const uint8_t *upper = p + c / 128 * kHalvesUpper, *lower = lower_of(m.view, number) + c / 128 * kHalvesLower;
        const size_t at = c % 128 / 32 * 256 + 64 * (c % 16 / 4) + 4 * r + c % 4;
        const int shift = c % 32 < 16 ? 0 : 4, byte = (upper[at] >> shift & 15) << 4 | (lower[at] >> shift & 15);
        float s;
        std::memcpy(&s, upper + kHalvesLower + 4 * r, 4);
        value = s * static_cast<float>(byte - 120 - kDither.whole[c]);
      } else {
        float s;
        std::memcpy(&s, p + block - 64 + 4 * r, 4);
        value = s * static_cast<float>(p[64 * (c / 4) + 4 * r + c % 4] - 128);
      }
      m.values[i * k + c] = value;
    }
  }
  return m;
}

// The least float16 that is not below a positive number.
inline uint16_t half_above(float value) {
  uint16_t low = 0, high = 0x7bff;
  while (low < high) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    if (from_f16(middle) < value) low = static_cast<uint16_t>(middle + 1); else high = middle;
  }
  return low;
}

// The screen of a matrix, in Q4_DITHERED.
inline Matrix screen_of(const Matrix& m) {
  Matrix screen;
  screen.view = {Layout::Q4_DITHERED, m.view.rows, m.view.cols, nullptr, nullptr};
  const size_t block = block_bytes(screen.view), bytes = block * static_cast<size_t>(screen.view.blocks());
  screen.memory = std::make_unique<Memory>(bytes);
  std::memset(screen.memory->data, 0, bytes);
  screen.view.data = screen.memory->data;
  const size_t rows = static_cast<size_t>(m.view.rows), cols = static_cast<size_t>(m.view.cols);
  for (size_t i = 0; i < rows * cols; i += std::min<size_t>(32, cols - i % cols)) {
    const size_t row = i / cols, first = i % cols, count = std::min<size_t>(32, cols - first), r = row % 16;
    float most = 0;
    for (size_t k = 0; k < count; ++k) most = std::max(most, std::fabs(m.values[i + k]));
    const uint16_t half = half_above(most / kDitherBias);
    const float scale = from_f16(half);
    uint8_t* unit = screen.memory->data + row / 16 * block + first / 64 * 576;
    uint8_t* quads = unit + first / 32 % 2 * 256;
    std::memcpy(unit + 512 + first / 32 % 2 * 32 + 2 * r, &half, 2);
    for (size_t k = 0; k < count; ++k) {
      const float dither = kDither.sixteenths[first + k] / 16.0f;
      const int upper = static_cast<int>((m.values[i + k] / scale + kDitherBias + dither) / 16);
      quads[64 * (k % 16 / 4) + 4 * r + k % 4] |= static_cast<uint8_t>(k < 16 ? upper : upper << 4);
    }
  }
  return screen;
}

struct Input {  // owns the buffers of an Activations with every form
  Input(int rows, int cols, int group) {
    const int stride = (cols + 127) / 128 * 128;
    const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(stride), groups = n / static_cast<size_t>(group), sums = n / 32;
    f32 = std::make_unique<Memory>(n * 4);
    bf16 = std::make_unique<Memory>(n * 2);
    q8 = std::make_unique<Memory>(n);
    scale = std::make_unique<Memory>(groups * 4);
    scaled_sum = std::make_unique<Memory>(sums * 4);
    sum = std::make_unique<Memory>(sums * 4);
    view = {cols, stride, kFloat | kBfloat16 | kInt8, group, reinterpret_cast<float*>(f32->data), reinterpret_cast<uint16_t*>(bf16->data),
            reinterpret_cast<int8_t*>(q8->data), reinterpret_cast<float*>(scale->data), reinterpret_cast<float*>(scaled_sum->data),
            reinterpret_cast<int32_t*>(sum->data)};
  }
  // What a layer of this layout reads for (row, column).
  double seen(Layout layout, int row, int col) const {
    const int64_t at = static_cast<int64_t>(row) * view.stride + col;
    switch (form_of(layout)) {
      case kFloat: return view.f32[at];
      case kBfloat16: return from_bf16(view.bf16[at]);
      default: return static_cast<double>(view.q8[at]) * view.scale[at / view.group];
    }
  }
  Activations view;
  std::unique_ptr<Memory> f32, bf16, q8, scale, scaled_sum, sum;
};

}  // namespace inferloom
