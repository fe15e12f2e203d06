// Vectors of 16 lanes as two halves on AVX2 with FMA and F16C.
#pragma once
#include "simd.h"

#include <immintrin.h>

namespace inferloom::avx2 {

struct Simd {
  struct F { __m256 a, b; };
  struct I { __m256i a, b; };
  struct M { __m256 a, b; };
  struct H { __m256i a, b; };
  struct B { __m256i a, b; };  // signed
  struct N { __m256i a, b; };

  static constexpr int kRegisters = 6;
  static constexpr int kTile = 4;     // tokens that a quantised linear computes together
  static constexpr int kRowTile = 2;  // tokens, and
  static constexpr int kRowBand = 4;  // rows, that a row-major linear computes together
  static constexpr bool kByteDot = false;

  // Memory. The forms with a count touch the first `n` (0 … 16) elements alone; lanes past them read as zero.
  SIMD_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  SIMD_INLINE F load(const float* p, int n) {
    const M m = first(n);
    return {_mm256_maskload_ps(p, cast(m.a)), _mm256_maskload_ps(p + 8, cast(m.b))};
  }
  SIMD_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
  SIMD_INLINE void store(float* p, F v, int n) {
    const M m = first(n);
    _mm256_maskstore_ps(p, cast(m.a), v.a);
    _mm256_maskstore_ps(p + 8, cast(m.b), v.b);
  }
  SIMD_INLINE I load(const int32_t* p) { return {load256(p), load256(p + 8)}; }
  SIMD_INLINE void store(int32_t* p, I v) { store256(p, v.a); store256(p + 8, v.b); }
  SIMD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  SIMD_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // second level

  // Floats.
  SIMD_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  SIMD_INLINE F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  SIMD_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  SIMD_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  SIMD_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  SIMD_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  SIMD_INLINE F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  SIMD_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  SIMD_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  SIMD_INLINE F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  SIMD_INLINE F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
  SIMD_INLINE F round(F x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  SIMD_INLINE F scale2(F x, F n) {  // n an integer in −126 … 127
    const I i = to_int(n);
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_mul_ps(x.a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.a, bias), 23))),
            _mm256_mul_ps(x.b, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.b, bias), 23)))};
  }
  SIMD_INLINE float sum(F x) {
    const __m256 b = _mm256_add_ps(x.a, x.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  SIMD_INLINE float max_of(F x) {
    const __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  // out[0 … 3] = the sums of x, y, z, w, each in the same order of additions.
  SIMD_INLINE void sum4(F x, F y, F z, F w, float* out) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(_mm256_add_ps(x.a, x.b), _mm256_add_ps(y.a, y.b)),
                                    _mm256_hadd_ps(_mm256_add_ps(z.a, z.b), _mm256_add_ps(w.a, w.b)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
  }

  // Integers.
  SIMD_INLINE I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  SIMD_INLINE I set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  SIMD_INLINE I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  SIMD_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  SIMD_INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
  SIMD_INLINE int32_t sum(I x) {
    const __m256i b = _mm256_add_epi32(x.a, x.b);
    __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    c = _mm_add_epi32(c, _mm_unpackhi_epi64(c, c));
    return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 1)));
  }
  SIMD_INLINE void store_int8(int8_t* p, I v) {  // saturated
    const __m128i a = _mm_packs_epi32(_mm256_castsi256_si128(v.a), _mm256_extracti128_si256(v.a, 1));
    const __m128i b = _mm_packs_epi32(_mm256_castsi256_si128(v.b), _mm256_extracti128_si256(v.b, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(a, b));
  }
  SIMD_INLINE I load_int8(const int8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
  }
  SIMD_INLINE I load_uint8(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
  }

  // Masks.
  SIMD_INLINE M first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)),
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane))};
  }
  SIMD_INLINE M is_nan(F x) { return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)}; }
  SIMD_INLINE M greater(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)}; }
  SIMD_INLINE bool any(M m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)) != 0; }
  SIMD_INLINE uint32_t bits(M m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
  }
  SIMD_INLINE F select(M m, F yes, F no) { return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)}; }
  SIMD_INLINE I select(M m, I yes, I no) {
    return {_mm256_blendv_epi8(no.a, yes.a, cast(m.a)), _mm256_blendv_epi8(no.b, yes.b, cast(m.b))};
  }

  // Sixteen-bit floats.
  SIMD_INLINE F load_bf16(const uint16_t* p) { return {widen(load128(p)), widen(load128(p + 8))}; }
  SIMD_INLINE F load_bf16(const uint16_t* p, int n) {
    uint16_t h[16] = {};
    std::memcpy(h, p, static_cast<size_t>(n) * 2);
    return load_bf16(h);
  }
  SIMD_INLINE void store_bf16(uint16_t* p, F v) { store256(p, narrow(rounded_bf16(v.a), rounded_bf16(v.b))); }
  SIMD_INLINE F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
  SIMD_INLINE F load_f16(const uint16_t* p, int n) {
    uint16_t h[16] = {};
    std::memcpy(h, p, static_cast<size_t>(n) * 2);
    return load_f16(h);
  }

  // Pairs of bfloat16.
  SIMD_INLINE H load_pairs(const uint16_t* p) { return {load256(p), load256(p + 16)}; }
  SIMD_INLINE H load_pairs(const uint16_t* p, int n) {  // n of 32 elements
    uint16_t h[32] = {};
    std::memcpy(h, p, static_cast<size_t>(n) * 2);
    return load_pairs(h);
  }
  SIMD_INLINE void store_pairs(uint16_t* p, H h) { store256(p, h.a); store256(p + 16, h.b); }
  SIMD_INLINE H set_pair(uint32_t pair) {
    const __m256i v = _mm256_set1_epi32(static_cast<int32_t>(pair));
    return {v, v};
  }
  SIMD_INLINE H set_pair(const uint16_t* p) { uint32_t pair; std::memcpy(&pair, p, 4); return set_pair(pair); }
  SIMD_INLINE H pack(F low, F high) {
    return {narrow(rounded_bf16(low.a), rounded_bf16(low.b)), narrow(rounded_bf16(high.a), rounded_bf16(high.b))};
  }
  SIMD_INLINE H interleave(F even, F odd) {
    return {_mm256_or_si256(rounded_bf16(even.a), _mm256_slli_epi32(rounded_bf16(odd.a), 16)),
            _mm256_or_si256(rounded_bf16(even.b), _mm256_slli_epi32(rounded_bf16(odd.b), 16))};
  }
  SIMD_INLINE F bf16_dot(F acc, H x, H y) { return {bf16_dot(acc.a, x.a, y.a), bf16_dot(acc.b, x.b, y.b)}; }

  // Dot products of bytes. The multiplication of bytes adds neighbours in 16 bits and saturates, so one operand must stay below
  // 128: the weight's magnitude is the unsigned one, and its sign moves to the activation (127 · 128 · 2 < 32768).
  SIMD_INLINE B bytes(const uint8_t* p) {
    const __m256i bias = _mm256_set1_epi8(static_cast<char>(0x80));
    return {_mm256_xor_si256(load256(p), bias), _mm256_xor_si256(load256(p + 32), bias)};
  }
  // From vectors of upper and of lower halves: the bytes of their low nibbles, and those of their high ones.
  SIMD_INLINE void join(const uint8_t* upper, const uint8_t* lower, B& first, B& second) {
    const __m256i bias = _mm256_set1_epi8(static_cast<char>(0x80)), mask = _mm256_set1_epi8(15);
    const auto low = [&](__m256i u, __m256i l) __attribute__((always_inline)) {
      return _mm256_xor_si256(_mm256_or_si256(_mm256_andnot_si256(mask, _mm256_slli_epi16(u, 4)), _mm256_and_si256(mask, l)), bias);
    };
    const auto high = [&](__m256i u, __m256i l) __attribute__((always_inline)) {
      return _mm256_xor_si256(_mm256_or_si256(_mm256_andnot_si256(mask, u), _mm256_and_si256(mask, _mm256_srli_epi16(l, 4))), bias);
    };
    const __m256i ua = load256(upper), ub = load256(upper + 32), la = load256(lower), lb = load256(lower + 32);
    first = {low(ua, la), low(ub, lb)};
    second = {high(ua, la), high(ub, lb)};
  }
  SIMD_INLINE void nibbles(const uint8_t* p, N& low, N& high) {
    const __m256i a = load256(p), b = load256(p + 32), mask = _mm256_set1_epi8(15);
    low = {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
  }
  static constexpr int kByteBias = 0;  // that `dot` leaves in the weight bytes
  SIMD_INLINE I dot_start(int32_t) { return zero_int(); }
  SIMD_INLINE I dot(I acc, B w, const int8_t* x) {
    const __m256i q = quad(x), ones = _mm256_set1_epi16(1);
    const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(q, w.a));
    const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(q, w.b));
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a, ones)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(b, ones))};
  }
  SIMD_INLINE I dot_nibbles(const N (&w)[8], const int8_t* x) {
    __m256i a = _mm256_setzero_si256(), b = a;  // of 16 bits: 8 · 2 · 15 · 127 < 32768
    for (int q = 0; q < 8; ++q) {
      a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w[q].a, quad(x + 4 * q)));
      b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w[q].b, quad(x + 4 * q)));
    }
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)};
  }
  SIMD_INLINE I low_six(const uint16_t* p) {
    const __m256i v = load256(p), mask = _mm256_set1_epi32(63);
    const __m256i repeat = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i a = _mm256_and_si256(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), mask);
    const __m256i b = _mm256_and_si256(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)), mask);
    return {_mm256_shuffle_epi8(a, repeat), _mm256_shuffle_epi8(b, repeat)};
  }
  SIMD_INLINE void levels(const uint8_t* p, I zero, N& low, N& high) {
    const __m256i a = load256(p), b = load256(p + 32), mask = _mm256_set1_epi8(60);
    low = {_mm256_add_epi8(_mm256_and_si256(_mm256_slli_epi16(a, 2), mask), zero.a),
           _mm256_add_epi8(_mm256_and_si256(_mm256_slli_epi16(b, 2), mask), zero.b)};
    high = {_mm256_add_epi8(_mm256_and_si256(_mm256_srli_epi16(a, 2), mask), zero.a),
            _mm256_add_epi8(_mm256_and_si256(_mm256_srli_epi16(b, 2), mask), zero.b)};
  }
  // The same for T tokens whose activations lie 32 bytes apart; `dot_levels` and `dot_bytes` add to what `d` holds.
  template <int T>
  SIMD_INLINE void dot_nibbles(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t) d[t] = dot_nibbles(w, x + 32 * t);
  }
  template <int T>
  SIMD_INLINE void dot_levels(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) {
      for (int q = 0; q < 8; ++q) {  // of 16 bits: 2 · 123 · 127 < 32768
        const __m256i four = quad(x + 32 * t + 4 * q);
        d[t].a = _mm256_add_epi32(d[t].a, _mm256_madd_epi16(_mm256_maddubs_epi16(w[q].a, four), ones));
        d[t].b = _mm256_add_epi32(d[t].b, _mm256_madd_epi16(_mm256_maddubs_epi16(w[q].b, four), ones));
      }
    }
  }
  template <int T>
  SIMD_INLINE void dot_bytes(const B (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t)
      for (int q = 0; q < 8; ++q) d[t] = dot(d[t], w[q], x + 32 * t + 4 * q);
  }

 private:
  SIMD_INLINE __m256i cast(__m256 v) { return _mm256_castps_si256(v); }
  SIMD_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  SIMD_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  SIMD_INLINE void store256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  SIMD_INLINE __m256i quad(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  SIMD_INLINE __m256 widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
  SIMD_INLINE __m256i narrow(__m256i a, __m256i b) {  // 16 lanes of 16 bits; values below 65536
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  }
  SIMD_INLINE __m256i rounded_bf16(__m256 v) {
    const __m256i u = cast(v), top = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i quiet_nan = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet_nan, cast(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  }
  SIMD_INLINE __m256 bf16_dot(__m256 acc, __m256i x, __m256i y) {
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(y, 16)), acc);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(x, high)), _mm256_castsi256_ps(_mm256_and_si256(y, high)), acc);
  }
};

}  // namespace inferloom::avx2
