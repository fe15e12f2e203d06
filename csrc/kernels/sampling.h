// Passes over a row of logits (csrc/sampling.h).
#pragma once
#include "../isa/math.h"
#include "../sampling.h"

namespace inferloom {
namespace {

template <class S>
bool maxima(const float* logits, int32_t vocab, float* maxima) {
  auto strange = S::zero();
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
      if (x != x) return false;
      rest = x > rest ? x : rest;
    }
    maxima[block] = rest;
  }
  return !S::any(S::greater(strange, S::zero()));
}

template <class S>
SIMD_INLINE typename S::F weight_of(const ScoredRow& row, typename S::F logits) {
  const auto score = S::div(S::sub(logits, S::set(row.top)), S::set(row.temperature));
  const float least = row.least > -87.0f ? row.least : -87.0f;  // e^−87 is nothing beside the best's 1
  return S::select(S::greater(S::set(least), score), S::zero(), exp<S>(score));
}

// Columns past the end count for nothing.
template <class S>
SIMD_INLINE typename S::F weights_at(const ScoredRow& row, int32_t begin, int32_t n) {
  if (n >= 16) return weight_of<S>(row, S::load(row.logits + begin));
  return S::select(S::first(n), weight_of<S>(row, S::load(row.logits + begin, n)), S::zero());
}

template <class S>
void masses(const ScoredRow& row, float* masses) {
  for (int32_t begin = 0, block = 0; begin < row.vocab; begin += kMassBlock, ++block) {
    const int32_t end = row.vocab - begin < kMassBlock ? row.vocab : begin + kMassBlock;
    auto sum = S::zero();
    for (int32_t i = begin; i < end; i += 16) sum = S::add(sum, weights_at<S>(row, i, end - i));
    masses[block] = S::sum(sum);
  }
}

template <class S>
void weights(const ScoredRow& row, int32_t begin, int32_t n, float* weights) {
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) S::store(weights + i, weights_at<S>(row, begin + i, 16));
  if (i < n) S::store(weights + i, weights_at<S>(row, begin + i, n - i), n - i);
}

template <class S>
int32_t at_least(const float* logits, int32_t begin, int32_t n, float threshold, float* values, int32_t* ids) {
  int32_t found = 0;
  for (int32_t i = 0; i < n; i += 16) {
    const int32_t lanes = n - i < 16 ? n - i : 16;
    const auto x = S::load(logits + begin + i, lanes);
    uint32_t in = ~S::bits(S::greater(S::set(threshold), x)) & ((1u << lanes) - 1u);
    for (; in; in &= in - 1) {
      const int32_t id = begin + i + __builtin_ctz(in);
      values[found] = logits[id];
      ids[found++] = id;
    }
  }
  return found;
}

template <class S>
constexpr SamplingOperators sampling_operators() {
  return {&maxima<S>, &masses<S>, &weights<S>, &at_least<S>};
}

}  // namespace
}  // namespace inferloom
