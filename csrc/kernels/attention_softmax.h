// Softmax in base 2: the exponential, and the joining of two softmaxes over different positions.
#pragma once
#include "../isa/simd.h"

namespace inferloom {
namespace {

constexpr float kLog2E = 1.44269504088896f;
constexpr float kInfinity = __builtin_inff();
constexpr float kNoMaximum = -1e30f;  // of nothing: finite, so that differences of maxima are numbers

// Loaded at an offset: a vector whose lanes below or from a bound are hidden. min(score, limit) also replaces the NaN
// that a stale key may give.
alignas(64) constexpr float kEdges[48] = {
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
    kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,
    kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,  kInfinity,
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity};

// 2^x of x ≤ 126: zero below −126, exactly 1 at 0. The polynomial of degree 4 on |r| ≤ 1/2 with the least relative
// error, 2.9e−6 (a least-squares fit with Lawson's weights): far below what rounding probabilities to bfloat16 costs.
template <class S>
SIMD_INLINE typename S::F exp2(typename S::F x) {
  const auto bounded = S::max(x, S::set(-126.0f));
  const auto n = S::round(bounded);
  const auto r = S::sub(bounded, n);
  auto p = S::set(9.58285314e-3f);
  p = S::fma(p, r, S::set(5.59064267e-2f));
  p = S::fma(p, r, S::set(2.40240986e-1f));
  p = S::fma(p, r, S::set(6.93124193e-1f));
  p = S::fma(p, r, S::set(1.0f));
  return S::select(S::greater(S::set(-126.0f), x), S::zero(), S::scale2(p, n));
}

template <class S>
float exp2_of(float x) {
  float lanes[16];
  S::store(lanes, exp2<S>(S::set(x)));
  return lanes[0];
}

// One head's softmax over some positions: Σ 2^(score − maximum) value, the maximum, Σ 2^(score − maximum).
struct Softmax {
  float* sums;
  float* maximum;
  float* weight;
};

// Joins the softmax of later positions to that of earlier ones.
template <class S>
void join(const Softmax& earlier, const float* sums, float maximum, float weight, int dim) {
  const float top = *earlier.maximum > maximum ? *earlier.maximum : maximum;
  const float kept = exp2_of<S>(*earlier.maximum - top), added = exp2_of<S>(maximum - top);
  for (int d = 0; d < dim; d += 16) {
    const auto old = S::mul(S::load(earlier.sums + d), S::set(kept));
    S::store(earlier.sums + d, S::fma(S::load(sums + d), S::set(added), old));
  }
  *earlier.weight = *earlier.weight * kept + weight * added;
  *earlier.maximum = top;
}

// output = sums / weight, with the head's sink in the denominator. Nothing seen at all: zeros.
template <class S>
void normalise(const Softmax& softmax, const float* sink, int dim, float* output) {
  float weight = *softmax.weight, scale = 1.0f;
  if (sink) {
    const float logit = *sink * kLog2E, top = logit > *softmax.maximum ? logit : *softmax.maximum;
    scale = exp2_of<S>(*softmax.maximum - top);
    weight = weight * scale + exp2_of<S>(logit - top);
  }
  const auto factor = S::set(weight == 0.0f ? 0.0f : scale / weight);
  for (int d = 0; d < dim; d += 16) S::store(output + d, S::mul(S::load(softmax.sums + d), factor));
}

}  // namespace
}  // namespace inferloom
