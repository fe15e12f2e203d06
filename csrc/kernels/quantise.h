// Float values into the forms that linear layers read (activations.h).
#pragma once
#include "../activations.h"
#include "../isa/simd.h"

namespace inferloom {

// One group of `G` columns (32, 64 or 128) from `n` floats, zeros past them: symmetric int8, its scale, and the sums of each 32. Where
// a float is not a number the scale is none either, and so are the results.
template <class S, int G>
SIMD_INLINE void quantise_group(const float* x, int n, int8_t* q, float* scale, float* scaled_sum, int32_t* sum) {
  constexpr int V = G / 16;
  typename S::F v[V];
  auto peak = S::zero();
  bool strange = false;
  for (int i = 0; i < V; ++i) {
    const int left = n - 16 * i;
    v[i] = left >= 16 ? S::load(x + 16 * i) : left > 0 ? S::load(x + 16 * i, left) : S::zero();
    strange |= S::any(S::is_nan(v[i]));
    peak = S::max(peak, S::abs(v[i]));
  }
  const float largest = strange ? __builtin_nanf("") : S::max_of(peak);
  // Below the smallest normal number / 127 the reciprocal would overflow: such a group is zero to any purpose.
  const auto inverse = S::set(largest > 1e-35f ? 127.0f / largest : 0.0f);
  *scale = largest <= 1e-35f ? 0.0f : largest / 127.0f;
  for (int i = 0; i < V; i += 2) {
    const auto low = S::to_int(S::mul(v[i], inverse)), high = S::to_int(S::mul(v[i + 1], inverse));
    S::store_int8(q + 16 * i, low);
    S::store_int8(q + 16 * i + 16, high);
    sum[i / 2] = S::sum(S::add(low, high));
    scaled_sum[i / 2] = *scale * static_cast<float>(sum[i / 2]);
  }
}

// Columns [begin, begin + n) of a row into every form that `out` has. `begin` is a multiple of the group (128 always is one). A last
// group that `n` ends within is completed with zeros; columns past `out.cols` stay zero.
template <class S>
SIMD_INLINE void write_forms(const Activations& out, int64_t row, int begin, const float* x, int n) {
  if (out.forms & kFloat) {
    float* to = out.f32 + row * out.stride + begin;
    int i = 0;
    for (; i + 16 <= n; i += 16) S::store(to + i, S::load(x + i));
    if (i < n) S::store(to + i, S::load(x + i, n - i), n - i);
  }
  if (out.forms & kBfloat16) {
    uint16_t* to = out.bf16 + row * out.stride + begin;
    int i = 0;
    for (; i + 16 <= n; i += 16) S::store_bf16(to + i, S::load(x + i));
    if (i < n) S::store_bf16(to + i, S::load(x + i, n - i));
  }
  if (out.forms & kInt8) {
    int8_t* q = out.q8 + row * out.stride + begin;
    float* scale = out.scale + row * out.groups() + begin / out.group;
    float* scaled_sum = out.scaled_sum + row * out.sums() + begin / 32;
    int32_t* sum = out.sum + row * out.sums() + begin / 32;
    for (int i = 0; i < n; i += out.group, ++scale) {
      const int at = i / 32;
      if (out.group == 128)
        quantise_group<S, 128>(x + i, n - i, q + i, scale, scaled_sum + at, sum + at);
      else if (out.group == 64)
        quantise_group<S, 64>(x + i, n - i, q + i, scale, scaled_sum + at, sum + at);
      else
        quantise_group<S, 32>(x + i, n - i, q + i, scale, scaled_sum + at, sum + at);
    }
  }
}

}  // namespace inferloom
