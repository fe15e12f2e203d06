// Queries and keys after their projections: per-head RMSNorm, rotation, and the writing of keys and values to their
// pages.
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

// int8 of x, and the scale that gives it back.
template <class S>
float quantise_head(const float* x, int dim, int8_t* out) {
  auto top = S::zero();
  for (int i = 0; i < dim; i += 16) top = S::max(top, S::abs(S::load(x + i)));
  const float largest = S::max_of(top);
  const auto inverse = S::set(largest > 0.0f ? 127.0f / largest : 0.0f);
  for (int i = 0; i < dim; i += 16) S::store_int8(out + i, S::to_int(S::mul(S::load(x + i), inverse)));
  return largest / 127.0f;
}

// Two elements of a key side by side.
template <class S, class Pair>
void write_key(const void* elements, int dim, uint8_t* keys, int place) {
  const Pair* pairs = static_cast<const Pair*>(elements);
  Pair* out = reinterpret_cast<Pair*>(keys) + (place / kKeyLanes * (dim / 2)) * kKeyLanes + place % kKeyLanes;
  for (int i = 0; i < dim / 2; ++i) std::memcpy(out + i * kKeyLanes, pairs + i, sizeof(Pair));
}

// One position of a pair alone: the other one stands already or comes later.
template <class S, class Element>
void write_value(const Element* elements, int dim, uint8_t* values, int place) {
  Element* out = reinterpret_cast<Element*>(values) + int64_t{place / 2} * dim * 2 + place % 2;
  for (int i = 0; i < dim; ++i) out[2 * i] = elements[i];
}

// Keys and values of one head at `count` consecutive positions of a page, whose rows are `stride` floats apart.
template <class S>
void write_keys_values(const float* keys, const float* values, int64_t stride, const KvLayout& layout, uint8_t* head,
                       int place, int count) {
  const int dim = layout.head_dim;
  if (layout.type == KvType::INT8) {
    float* scales = reinterpret_cast<float*>(head);
    alignas(64) int8_t rounded[kMostHeadDim];
    for (int i = 0; i < count; ++i, ++place) {
      scales[layout.key_scales() / 4 + place] = quantise_head<S>(keys + i * stride, dim, rounded);
      write_key<S, uint16_t>(rounded, dim, head + layout.keys(), place);
      scales[layout.value_scales() / 4 + place] = quantise_head<S>(values + i * stride, dim, rounded);
      write_value<S>(rounded, dim, head + layout.values(), place);
    }
    return;
  }
  alignas(64) uint16_t rounded[kMostHeadDim];
  for (int i = 0; i < count; ++i) {
    for (int d = 0; d < dim; d += 16) S::store_bf16(rounded + d, S::load(keys + i * stride + d));
    write_key<S, uint32_t>(rounded, dim, head + layout.keys(), place + i);
  }
  for (int i = 0; i < count;) {
    const float* even = values + i * stride;
    if ((place + i) % 2 == 0 && i + 1 < count) {  // whole cache lines
      uint16_t* out = reinterpret_cast<uint16_t*>(head + layout.values()) + int64_t{(place + i) / 2} * dim * 2;
      for (int d = 0; d < dim; d += 16)
        S::store_pairs(out + 2 * d, S::interleave(S::load(even + d), S::load(even + stride + d)));
      i += 2;
      continue;
    }
    for (int d = 0; d < dim; d += 16) S::store_bf16(rounded + d, S::load(even + d));
    write_value<S>(rounded, dim, head + layout.values(), place + i++);
  }
}

template <class S>
void heads(const HeadJob& job, const KvPool& pool, const int32_t* positions, const int32_t* pages, int row_begin,
           int row_end) {
  const int dim = job.head_dim, half = job.rotary / 2, group = job.heads / job.kv_heads;
  const int first = job.kv_begin, last = job.kv_end < job.kv_heads ? job.kv_end : job.kv_heads;
  const KvLayout layout{dim, pool.type};
  const auto prepare = [&](int row, int h) {  // the keys follow the queries
    float* head = job.qkv + row * job.stride + int64_t{h} * dim;
    const float* weight = h < job.heads ? job.q_norm : job.k_norm;
    if (weight) normalise_head<S>(head, weight, job.eps, dim);
    if (!job.cos_sin) return;
    const float* cosines = job.cos_sin + int64_t{positions[row]} * job.rotary;
    rotate<S>(head, cosines, cosines + half, half);
  };
  for (int row = row_begin; row < row_end;) {
    // Consecutive positions of a page: a head's pages are written cache line by cache line.
    int end = row + 1;
    while (end < row_end && pages[end] == pages[row] && positions[end] == positions[end - 1] + 1) ++end;
    for (int r = row; r < end; ++r) {
      for (int h = first * group; h < last * group; ++h) prepare(r, h);
      for (int h = first; h < last; ++h) prepare(r, job.heads + h);
    }
    uint8_t* page = pool.base + pages[row] * pool.page_stride;
    const float* keys = job.qkv + row * job.stride + int64_t{job.heads} * dim;
    const float* values = keys + int64_t{job.kv_heads} * dim;
    for (int h = first; h < last; ++h)
      write_keys_values<S>(keys + int64_t{h} * dim, values + int64_t{h} * dim, job.stride, layout,
                           page + h * layout.head_bytes(), positions[row] % kPageSize, end - row);
    row = end;
  }
}

}  // namespace
}  // namespace inferloom
