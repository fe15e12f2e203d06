// Queries and keys after their projections: per-head RMSNorm, rotation, and the writing of keys and values to their pages.
#pragma once
#include "../isa/simd.h"
#include "kv_layout.h"

namespace inferloom {
namespace {

// x / sqrt(mean(x²) + eps) * weight, over one head.
template <class S>
void normalise_head(float* x, const float* weight, float eps, int dim) {
  auto squares = S::zero();
  for (int i = 0; i < dim; i += 16) squares = S::fma(S::load(x + i), S::load(x + i), squares);
  const auto factor = S::set(1.0f / __builtin_sqrtf(S::sum(squares) / static_cast<float>(dim) + eps));
  for (int i = 0; i < dim; i += 16) S::store(x + i, S::mul(S::mul(S::load(x + i), factor), S::load(weight + i)));
}

// Rotates element i with element i + half, in place.
template <class S>
void rotate(float* x, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; i += 16) {
    const int n = half - i < 16 ? half - i : 16;
    const auto a = S::load(x + i, n), b = S::load(x + half + i, n);
    const auto c = S::load(cosines + i, n), s = S::load(sines + i, n);
    S::store(x + i, S::sub(S::mul(a, c), S::mul(b, s)), n);
    S::store(x + half + i, S::add(S::mul(b, c), S::mul(a, s)), n);
  }
}

// `element(i)`: where element i of the head goes. Single elements are stored: the neighbours may be another thread's.
template <class S, class Place>
void write_bfloat16(const float* x, int dim, uint8_t* begin, Place place) {
  uint16_t* out = reinterpret_cast<uint16_t*>(begin);
  uint16_t rounded[16];
  for (int i = 0; i < dim; i += 16) {
    S::store_bf16(rounded, S::load(x + i));
    for (int j = 0; j < 16; ++j) out[place(i + j)] = rounded[j];
  }
}

template <class S, class Place>
void write_int8(const float* x, int dim, uint8_t* begin, float* scale, Place place) {
  auto top = S::zero();
  for (int i = 0; i < dim; i += 16) top = S::max(top, S::abs(S::load(x + i)));
  const float largest = S::max_of(top);
  const auto inverse = S::set(largest > 0.0f ? 127.0f / largest : 0.0f);
  *scale = largest / 127.0f;
  int8_t* out = reinterpret_cast<int8_t*>(begin);
  int8_t rounded[16];
  for (int i = 0; i < dim; i += 16) {
    S::store_int8(rounded, S::to_int(S::mul(S::load(x + i), inverse)));
    for (int j = 0; j < 16; ++j) out[place(i + j)] = rounded[j];
  }
}

template <class S>
void write_key_value(const float* key, const float* value, const KvLayout& layout, uint8_t* head, int place) {
  const int dim = layout.head_dim;
  const auto key_place = [&](int i) { return layout.key_element(place, i); };
  const auto value_place = [&](int i) { return layout.value_element(place, i); };
  if (layout.type == KvType::BF16) {
    write_bfloat16<S>(key, dim, head + layout.keys(), key_place);
    write_bfloat16<S>(value, dim, head + layout.values(), value_place);
  } else {
    float* key_scales = reinterpret_cast<float*>(head + layout.key_scales());
    float* value_scales = reinterpret_cast<float*>(head + layout.value_scales());
    write_int8<S>(key, dim, head + layout.keys(), key_scales + place, key_place);
    write_int8<S>(value, dim, head + layout.values(), value_scales + place, value_place);
  }
}

template <class S>
void heads(const HeadJob& job, const KvPool& pool, const int32_t* positions, const int32_t* pages, int row_begin, int row_end) {
  const int dim = job.head_dim, half = job.rotary / 2, group = job.heads / job.kv_heads;
  const int first = job.kv_begin, last = job.kv_end < job.kv_heads ? job.kv_end : job.kv_heads;
  const KvLayout layout{dim, pool.type};
  for (int row = row_begin; row < row_end; ++row) {
    float* queries = job.qkv + row * job.stride;
    float* keys = queries + int64_t{job.heads} * dim;
    const float* values = keys + int64_t{job.kv_heads} * dim;
    const auto prepare = [&](int h) {  // the keys follow the queries
      float* head = queries + int64_t{h} * dim;
      const float* weight = h < job.heads ? job.q_norm : job.k_norm;
      if (weight) normalise_head<S>(head, weight, job.eps, dim);
      if (job.cos_sin) {
        const float* cosines = job.cos_sin + int64_t{positions[row]} * job.rotary;
        rotate<S>(head, cosines, cosines + half, half);
      }
    };
    for (int h = first * group; h < last * group; ++h) prepare(h);
    for (int h = first; h < last; ++h) prepare(job.heads + h);
    uint8_t* page = pool.base + pages[row] * pool.page_stride;
    for (int h = first; h < last; ++h)
      write_key_value<S>(keys + int64_t{h} * dim, values + int64_t{h} * dim, layout, page + h * layout.head_bytes(),
                         positions[row] % kPageSize);
  }
}

}  // namespace
}  // namespace inferloom
