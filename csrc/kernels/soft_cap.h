// Logits kept within ±cap: cap · tanh(x / cap).
#pragma once
#include "../isa/math.h"
#include "../operators.h"

namespace inferloom {
namespace {

template <class S>
void soft_cap(float* logits, int64_t stride, int cols, float cap, int row_begin, int row_end) {
  const auto limit = S::set(cap), inverse = S::set(1.0f / cap);
  for (int row = row_begin; row < row_end; ++row) {
    float* x = logits + row * stride;
    for (int i = 0; i < cols; i += 16) {
      const int n = cols - i < 16 ? cols - i : 16;
      S::store(x + i, S::mul(limit, tanh<S>(S::mul(S::load(x + i, n), inverse))), n);
    }
  }
}

}  // namespace
}  // namespace inferloom
