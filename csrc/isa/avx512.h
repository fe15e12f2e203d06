// Vectors of 16 lanes on AVX-512 F, BW, DQ, VL.
#pragma once
#include "simd.h"

#include <immintrin.h>

namespace inferloom::avx512 {

struct Simd {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  struct H { __m512i pairs; };
  struct B { __m512i magnitude; __mmask64 negative; };
  struct N { __m512i bytes; };

  static constexpr int kRegisters = 24;
  static constexpr int kTile = 16;     // tokens that a quantised linear computes together
  static constexpr int kRowTile = 3;  // tokens, and
  static constexpr int kRowBand = 8;  // rows, that a row-major linear computes together
  static constexpr bool kByteDot = false;

  // Memory. The forms with a count touch the first `n` (0 … 16) elements alone; lanes past them read as zero.
  SIMD_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  SIMD_INLINE F load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  SIMD_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  SIMD_INLINE void store(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  SIMD_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  SIMD_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  SIMD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  SIMD_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // second level

  // Floats.
  SIMD_INLINE F zero() { return _mm512_setzero_ps(); }
  SIMD_INLINE F set(float x) { return _mm512_set1_ps(x); }
  SIMD_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  SIMD_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  SIMD_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  SIMD_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  SIMD_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  SIMD_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  SIMD_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  SIMD_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  SIMD_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
  SIMD_INLINE F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  SIMD_INLINE F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }
  SIMD_INLINE float sum(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  SIMD_INLINE float max_of(F a) { return _mm512_reduce_max_ps(a); }
  // out[0 … 3] = the sums of a, b, c, d, each in the same order of additions.
  SIMD_INLINE void sum4(F a, F b, F c, F d, float* out) {
    const F ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
    const F abcd = add(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  // Integers.
  SIMD_INLINE I zero_int() { return _mm512_setzero_si512(); }
  SIMD_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  SIMD_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
  SIMD_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  SIMD_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
  SIMD_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
  SIMD_INLINE void store_int8(int8_t* p, I v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v)); }
  SIMD_INLINE I load_int8(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  SIMD_INLINE I load_uint8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

  // Masks.
  SIMD_INLINE M first(int n) { return static_cast<M>((1u << n) - 1u); }
  SIMD_INLINE M is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  SIMD_INLINE M greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  SIMD_INLINE bool any(M m) { return m != 0; }
  SIMD_INLINE uint32_t bits(M m) { return m; }
  SIMD_INLINE F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  SIMD_INLINE I select(M m, I yes, I no) { return _mm512_mask_blend_epi32(m, no, yes); }

  // Sixteen-bit floats.
  SIMD_INLINE F load_bf16(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  SIMD_INLINE F load_bf16(const uint16_t* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  SIMD_INLINE void store_bf16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded_bf16(v)));
  }
  SIMD_INLINE F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  SIMD_INLINE F load_f16(const uint16_t* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }

  // Pairs of bfloat16.
  SIMD_INLINE H load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
  SIMD_INLINE H load_pairs(const uint16_t* p, int n) {
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(n >= 32 ? ~0u : (1u << n) - 1u), p)};
  }
  SIMD_INLINE void store_pairs(uint16_t* p, H h) { _mm512_storeu_si512(p, h.pairs); }
  SIMD_INLINE H set_pair(uint32_t pair) { return {_mm512_set1_epi32(static_cast<int32_t>(pair))}; }
  SIMD_INLINE H set_pair(const uint16_t* p) { uint32_t pair; std::memcpy(&pair, p, 4); return set_pair(pair); }
  SIMD_INLINE H pack(F low, F high) {
    const __m256i a = _mm512_cvtepi32_epi16(rounded_bf16(low)), b = _mm512_cvtepi32_epi16(rounded_bf16(high));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)};
  }
  SIMD_INLINE H interleave(F even, F odd) {
    return {_mm512_or_si512(rounded_bf16(even), _mm512_slli_epi32(rounded_bf16(odd), 16))};
  }
  SIMD_INLINE F bf16_dot(F acc, H a, H b) {
    const __m512i high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(a.pairs, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b.pairs, 16)), acc);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(a.pairs, high)), _mm512_castsi512_ps(_mm512_and_si512(b.pairs, high)), acc);
  }

  // Dot products of bytes. The multiplication of bytes adds neighbours in 16 bits and saturates, so one operand must stay below
  // 128: the weight's magnitude is the unsigned one, and its sign moves to the activation (127 · 128 · 2 < 32768).
  SIMD_INLINE B bytes(const uint8_t* p) {
    return biased(_mm512_loadu_si512(p));
  }
  // From vectors of upper and of lower halves: the bytes of their low nibbles, and those of their high ones.
  SIMD_INLINE void join(const uint8_t* upper, const uint8_t* lower, B& first, B& second) {
    __m512i low, high;
    join(_mm512_loadu_si512(upper), _mm512_loadu_si512(lower), low, high);
    first = biased(low);
    second = biased(high);
  }
  SIMD_INLINE void nibbles(const uint8_t* p, N& low, N& high) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    low = {_mm512_and_si512(both, mask)};
    high = {_mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  }
  SIMD_INLINE I low_six(const uint16_t* p) {
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i repeat = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    return _mm512_shuffle_epi8(_mm512_and_si512(v, _mm512_set1_epi32(63)), repeat);
  }
  SIMD_INLINE void levels(const uint8_t* p, I zero, N& low, N& high) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(60);
    low = {_mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(both, 2), mask), zero)};
    high = {_mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 2), mask), zero)};
  }
  static constexpr int kByteBias = 0;  // that `dot` leaves in the weight bytes
  SIMD_INLINE I dot_start(int32_t) { return zero_int(); }
  SIMD_INLINE I dot(I acc, B w, const int8_t* x) {
    const __m512i a = quad(x);
    const __m512i s = _mm512_mask_sub_epi8(a, w.negative, _mm512_setzero_si512(), a);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w.magnitude, s), _mm512_set1_epi16(1)));
  }
  SIMD_INLINE I dot_nibbles(const N (&w)[8], const int8_t* x) {
    __m512i acc = _mm512_setzero_si512();  // of 16 bits: 8 · 2 · 15 · 127 < 32768
    for (int q = 0; q < 8; ++q) acc = _mm512_add_epi16(acc, _mm512_maddubs_epi16(w[q].bytes, quad(x + 4 * q)));
    return _mm512_madd_epi16(acc, _mm512_set1_epi16(1));
  }
  // The same for T tokens whose activations lie 32 bytes apart; `dot_levels` and `dot_bytes` add to what `d` holds.
  template <int T>
  SIMD_INLINE void dot_nibbles(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t) d[t] = dot_nibbles(w, x + 32 * t);
  }
  template <int T>
  SIMD_INLINE void dot_levels(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t)
      for (int q = 0; q < 8; ++q)  // of 16 bits: 2 · 123 · 127 < 32768
        d[t] = _mm512_add_epi32(d[t], _mm512_madd_epi16(_mm512_maddubs_epi16(w[q].bytes, quad(x + 32 * t + 4 * q)), _mm512_set1_epi16(1)));
  }
  template <int T>
  SIMD_INLINE void dot_bytes(const B (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t)
      for (int q = 0; q < 8; ++q) d[t] = dot(d[t], w[q], x + 32 * t + 4 * q);
  }

 protected:
  SIMD_INLINE B biased(__m512i bytes) {
    const __m512i w = _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80)));
    return {_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
  }
  SIMD_INLINE void join(__m512i upper, __m512i lower, __m512i& low, __m512i& high) {
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_ternarylogic_epi64(mask, lower, _mm512_slli_epi16(upper, 4), 0xca);  // of the mask's bits the second, of the others the third
    high = _mm512_ternarylogic_epi64(mask, _mm512_srli_epi16(lower, 4), upper, 0xca);
  }
  SIMD_INLINE __m512i quad(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  SIMD_INLINE F widen(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  SIMD_INLINE __m512i rounded_bf16(F v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    const __m512i quiet_nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet_nan);
  }
};

}  // namespace inferloom::avx512
