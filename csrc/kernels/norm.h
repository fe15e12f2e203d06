// RMSNorm and LayerNorm over rows of the float32 residual stream, straight into the forms that the next linear layers
// read.
#pragma once
#include "../operators.h"
#include "quantise.h"

namespace inferloom {
namespace {

constexpr int kNormPiece = 128;  // columns normalised at a time: a whole group of any quantised form

// y = (x - mean) * factor * weight + bias.
struct NormFactors {
  float mean, factor;
};

// Lane i of `term` adds up columns i, i + 16, …: the order of the additions depends on the row's length alone.
template <class S, class Term>
SIMD_INLINE float sum_of_row(const float* x, int cols, Term term) {
  auto even = S::zero(), odd = S::zero();
  int i = 0;
  for (; i + 32 <= cols; i += 32) {
    even = term(even, S::load(x + i), 16);
    odd = term(odd, S::load(x + i + 16), 16);
  }
  for (; i < cols; i += 16) {
    const int n = cols - i < 16 ? cols - i : 16;
    even = term(even, S::load(x + i, n), n);  // lanes past the end read as zero
  }
  return S::sum(S::add(even, odd));
}

template <class S>
NormFactors factors_of(const NormJob& job, const float* x) {
  using F = typename S::F;
  const int cols = job.cols;
  const float count = static_cast<float>(cols);
  float mean = 0.0f;
  if (job.kind == NormKind::LAYER)
    mean =
        sum_of_row<S>(x, cols, [](F sum, F v, int) __attribute__((always_inline)) { return S::add(sum, v); }) / count;
  const F shift = S::set(mean);
  const float squares = sum_of_row<S>(x, cols, [shift](F sum, F v, int n) __attribute__((always_inline)) {
    F d = S::sub(v, shift);
    if (n < 16) d = S::select(S::first(n), d, S::zero());
    return S::fma(d, d, sum);
  });
  return {mean, 1.0f / __builtin_sqrtf(squares / count + job.eps)};
}

// Columns [begin, begin + n ≤ 16) of the normalised row.
template <class S>
SIMD_INLINE typename S::F normalised(const NormJob& job, const NormFactors& f, const float* x, int begin, int n) {
  const auto get = [begin, n](const float* p) __attribute__((always_inline)) {
    return n == 16 ? S::load(p + begin) : S::load(p + begin, n);
  };
  auto y = S::mul(S::sub(get(x), S::set(f.mean)), S::set(f.factor));
  if (job.weight) y = S::mul(y, get(job.weight));
  return job.bias ? S::add(y, get(job.bias)) : y;
}

// Columns [begin, begin + n).
template <class S>
SIMD_INLINE void normalise_columns(const NormJob& job, const NormFactors& f, const float* x, int begin, int n,
                                   float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) S::store(out + i, normalised<S>(job, f, x, begin + i, 16));
  if (i < n) S::store(out + i, normalised<S>(job, f, x, begin + i, n - i), n - i);
}

template <class S>
void norm(const NormJob& job, Activations* output, int row_begin, int row_end) {
  float piece[kNormPiece];
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = job.input + row * job.input_stride;
    const NormFactors factors = factors_of<S>(job, x);
    for (int begin = 0; begin < job.cols; begin += kNormPiece) {
      const int left = job.cols - begin, n = left < kNormPiece ? left : kNormPiece;
      normalise_columns<S>(job, factors, x, begin, n, piece);
      write_forms<S>(*output, row, begin, piece, n);
    }
  }
}

template <class S>
void norm_rows(const NormJob& job, float* output, int64_t output_stride, int row_begin, int row_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = job.input + row * job.input_stride;
    normalise_columns<S>(job, factors_of<S>(job, x), x, 0, job.cols, output + row * output_stride);
  }
}

}  // namespace
}  // namespace inferloom
