// Passes over a row of logits (csrc/sampling.h).
#pragma once
#include "../isa/math.h"
#include "../sampling.h"

namespace inferloom {
namespace {

template <class S>
float maxima(const float* logits, int32_t vocab, float* maxima) {
  auto strange = S::zero();
  float most = -__builtin_inff();
  for (int32_t begin = 0, block = 0; begin < vocab; begin += kMaximumBlock, ++block) {
    const int32_t left = vocab - begin, n = left < kMaximumBlock ? left : kMaximumBlock;
    auto top = S::set(-__builtin_inff());
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const auto x = S::load(logits + begin + i);
      strange = S::select(S::is_nan(x), S::set(1.0f), strange);
      top = S::max(x, top);
    }
    float rest = S::max_of(top);
    for (; i < n; ++i) {
      const float x = logits[begin + i];
      if (x != x) return x;
      rest = x > rest ? x : rest;
    }
    maxima[block] = rest;
    most = rest > most ? rest : most;
  }
  return S::any(S::greater(strange, S::zero())) ? __builtin_nanf("") : most;
}

// 2^y for −126 ≤ y ≤ 0, exactly 1 for 0: a polynomial of degree 5 on the fraction in [−1/2, 1/2], fitted for the least
// relative error (1.5e−7, float32's rounding included: two terms less than `exp`, and no clamp from above, in the loop
// that sampling spends its time in).
template <class S>
SIMD_INLINE typename S::F power_of_two(typename S::F y) {
  const auto n = S::round(y), f = S::sub(y, n);
  auto p = S::set(0.0013264727f);
  p = S::fma(p, f, S::set(0.009671513f));
  p = S::fma(p, f, S::set(0.055507336f));
  p = S::fma(p, f, S::set(0.24022242f));
  p = S::fma(p, f, S::set(0.693147f));
  p = S::fma(p, f, S::set(1.0f));
  return S::scale2(p, n);
}

// e^((logit − top) / temperature), and nothing where that is no more than 2^−126, which is nothing beside the best's 1.
// `Limited`: nothing where the exponent is below `least`, too, which else is −∞.
template <class S, bool Limited>
SIMD_INLINE typename S::F weight_of(const ScoredRow& row, typename S::F logits) {
  const auto below = S::sub(logits, S::set(row.top));
  const auto y = S::max(S::mul(below, S::set(1.44269504f / row.temperature)), S::set(-126.0f));
  const auto weight = S::sub(power_of_two<S>(y), S::set(1.17549435e-38f));
  if constexpr (!Limited) return weight;
  return S::select(S::greater(S::set(row.least), S::div(below, S::set(row.temperature))), S::zero(), weight);
}

// Columns past the end count for nothing.
template <class S, bool Limited>
SIMD_INLINE typename S::F weights_at(const ScoredRow& row, int32_t begin, int32_t n) {
  if (n >= 16) return weight_of<S, Limited>(row, S::load(row.logits + begin));
  return S::select(S::first(n), weight_of<S, Limited>(row, S::load(row.logits + begin, n)), S::zero());
}

template <class S, bool Limited>
SIMD_INLINE void sum_blocks(const ScoredRow& row, float* masses) {
  int32_t begin = 0, block = 0;
  for (; begin + kMassBlock <= row.vocab; begin += kMassBlock, ++block) {
    auto even = S::zero(), odd = S::zero();
    for (int32_t i = begin; i < begin + kMassBlock; i += 32) {
      even = S::add(even, weight_of<S, Limited>(row, S::load(row.logits + i)));
      odd = S::add(odd, weight_of<S, Limited>(row, S::load(row.logits + i + 16)));
    }
    masses[block] = S::sum(S::add(even, odd));
  }
  if (begin == row.vocab) return;
  auto sum = S::zero();
  for (int32_t i = begin; i < row.vocab; i += 16) sum = S::add(sum, weights_at<S, Limited>(row, i, row.vocab - i));
  masses[block] = S::sum(sum);
}

template <class S>
void masses(const ScoredRow& row, float* masses) {
  row.least > -87.0f ? sum_blocks<S, true>(row, masses) : sum_blocks<S, false>(row, masses);
}

template <class S, bool Limited>
SIMD_INLINE void write_weights(const ScoredRow& row, int32_t begin, int32_t n, float* weights) {
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) S::store(weights + i, weights_at<S, Limited>(row, begin + i, 16));
  if (i < n) S::store(weights + i, weights_at<S, Limited>(row, begin + i, n - i), n - i);
}

template <class S>
void weights(const ScoredRow& row, int32_t begin, int32_t n, float* weights) {
  row.least > -87.0f ? write_weights<S, true>(row, begin, n, weights) : write_weights<S, false>(row, begin, n, weights);
}

template <class S>
int32_t within(const float* row, int32_t begin, int32_t n, float low, float high, float* values, int32_t* ids) {
  int32_t found = 0;
  for (int32_t i = 0; i < n; i += 16) {
    const int32_t lanes = n - i < 16 ? n - i : 16;
    const auto x = S::load(row + begin + i, lanes);
    uint32_t in = ~S::bits(S::greater(S::set(low), x)) & S::bits(S::greater(S::set(high), x)) & ((1u << lanes) - 1u);
    for (; in; in &= in - 1) {
      const int32_t id = begin + i + __builtin_ctz(in);
      values[found] = row[id];
      ids[found++] = id;
    }
  }
  return found;
}

template <class S>
void sums_from(const float* weights, int32_t n, const float* edges, double* sums) {
  for (int k = 0; k < kWeightEdges; ++k) sums[k] = 0;
  for (int32_t begin = 0; begin < n; begin += kMassBlock) {
    const int32_t end = n - begin < kMassBlock ? n : begin + kMassBlock;
    typename S::F sum[kWeightEdges];
    for (int k = 0; k < kWeightEdges; ++k) sum[k] = S::zero();
    for (int32_t i = begin; i < end; i += 16) {
      const auto x = end - i < 16 ? S::load(weights + i, end - i) : S::load(weights + i);
      for (int k = 0; k < kWeightEdges; ++k)
        sum[k] = S::add(sum[k], S::select(S::greater(S::set(edges[k]), x), S::zero(), x));
    }
    for (int k = 0; k < kWeightEdges; ++k) sums[k] += S::sum(sum[k]);
  }
}

template <class S>
constexpr SamplingOperators sampling_operators() {
  return {&maxima<S>, &masses<S>, &weights<S>, &within<S>, &sums_from<S>};
}

}  // namespace
}  // namespace inferloom
