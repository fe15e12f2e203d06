// The input of linear layers: M rows of K values, in every form that the layers reading them want.
#pragma once
#include <cstdint>

#include "linear.h"

namespace inferloom {

enum Form : uint32_t {
  kFloat = 1,     // float32: for F32 and F16 weights
  kBfloat16 = 2,  // for BF16 weights
  kInt8 = 4,      // groups of int8: for quantised weights
};

// All rows have `stride` elements, K rounded up to 128; the elements past K are zero in every form and stay so.
struct Activations {
  int32_t cols = 0;
  int32_t stride = 0;
  uint32_t forms = 0;  // which of the buffers below are there
  int32_t group = 32;  // columns that share a scale in the int8 form: 32, 64 or 128
  float* f32 = nullptr;
  uint16_t* bf16 = nullptr;
  int8_t* q8 = nullptr;        // symmetric, −127 … 127
  float* scale = nullptr;      // [M, stride / group]
  float* scaled_sum = nullptr; // [M, stride / 32]: scale × sum of 32 columns, for minima
  int32_t* sum = nullptr;      // [M, stride / 32]: sum of 32 columns, for the bias of weight bytes

  int32_t groups() const { return stride / group; }
  int32_t sums() const { return stride / 32; }
};

inline Form form_of(Layout layout) {
  switch (layout) {
    case Layout::F32:
    case Layout::F16: return kFloat;
    case Layout::BF16: return kBfloat16;
    default: return kInt8;
  }
}

}  // namespace inferloom
