// Elementary functions of 16 lanes, from the primitives of a `Simd`. Errors are in units of the last place (ulp) of float32, measured by
// csrc/tests/linear_test.cpp.
#pragma once
#include "simd.h"

namespace inferloom {

// e^x. Below −87.3 the result is that of −87.3 (1.2e−38), above 88.3 that of 88.3. Range reduction by ln 2 in two parts, then
// Taylor's polynomial of degree 7 on |r| ≤ ln 2 / 2. 2 ulp.
template <class S>
SIMD_INLINE typename S::F exp(typename S::F x) {
  x = S::min(S::max(x, S::set(-87.3f)), S::set(88.3f));
  const auto n = S::round(S::mul(x, S::set(1.44269504f)));
  auto r = S::fma(n, S::set(-0.693145752f), x);
  r = S::fma(n, S::set(-1.42860677e-6f), r);
  auto p = S::set(1.0f / 5040);
  p = S::fma(p, r, S::set(1.0f / 720));
  p = S::fma(p, r, S::set(1.0f / 120));
  p = S::fma(p, r, S::set(1.0f / 24));
  p = S::fma(p, r, S::set(1.0f / 6));
  p = S::fma(p, r, S::set(0.5f));
  p = S::fma(p, r, S::set(1.0f));
  p = S::fma(p, r, S::set(1.0f));
  return S::scale2(p, n);
}

// 1 / (1 + e^−x).
template <class S>
SIMD_INLINE typename S::F sigmoid(typename S::F x) {
  return S::div(S::set(1.0f), S::add(S::set(1.0f), exp<S>(S::sub(S::zero(), x))));
}

// tanh x = 1 − 2 / (e^2x + 1), and its odd series for |x| < 1/4, where that form loses digits.
template <class S>
SIMD_INLINE typename S::F tanh(typename S::F x) {
  const auto e = exp<S>(S::add(x, x));
  const auto far = S::sub(S::set(1.0f), S::div(S::set(2.0f), S::add(e, S::set(1.0f))));
  const auto s = S::mul(x, x);
  auto p = S::set(62.0f / 2835);
  p = S::fma(p, s, S::set(-17.0f / 315));
  p = S::fma(p, s, S::set(2.0f / 15));
  p = S::fma(p, s, S::set(-1.0f / 3));
  const auto near = S::fma(S::mul(p, s), x, x);
  return S::select(S::greater(S::set(0.25f), S::abs(x)), near, far);
}

// The error function's complement at |z|, erfc(z) = t · e^(−z² + P(t)), t = 1 / (1 + z / 2): Numerical Recipes §6.2 (Chebyshev
// fit, relative error below 1.2e−7 everywhere).
template <class S>
SIMD_INLINE typename S::F erfc_of_positive(typename S::F z) {
  const auto t = S::div(S::set(1.0f), S::fma(z, S::set(0.5f), S::set(1.0f)));
  auto p = S::set(0.17087277f);
  p = S::fma(p, t, S::set(-0.82215223f));
  p = S::fma(p, t, S::set(1.48851587f));
  p = S::fma(p, t, S::set(-1.13520398f));
  p = S::fma(p, t, S::set(0.27886807f));
  p = S::fma(p, t, S::set(-0.18628806f));
  p = S::fma(p, t, S::set(0.09678418f));
  p = S::fma(p, t, S::set(0.37409196f));
  p = S::fma(p, t, S::set(1.00002368f));
  p = S::fma(p, t, S::set(-1.26551223f));
  return S::mul(t, exp<S>(S::fma(S::sub(S::zero(), z), z, p)));
}

// x Φ(x), exactly (erf).
template <class S>
SIMD_INLINE typename S::F gelu(typename S::F x) {
  const auto tail = S::mul(S::set(0.5f), erfc_of_positive<S>(S::mul(S::abs(x), S::set(0.70710678f))));
  const auto phi = S::select(S::greater(x, S::zero()), S::sub(S::set(1.0f), tail), tail);
  return S::mul(x, phi);
}

// x Φ(x) by its usual approximation: x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(2 √(2/π) (…)).
template <class S>
SIMD_INLINE typename S::F gelu_tanh(typename S::F x) {
  const auto cube = S::mul(S::mul(x, x), S::mul(x, S::set(0.044715f)));
  return S::mul(x, sigmoid<S>(S::mul(S::set(1.59576912f), S::add(x, cube))));
}

template <class S>
SIMD_INLINE typename S::F silu(typename S::F x) { return S::mul(x, sigmoid<S>(x)); }

}  // namespace inferloom
