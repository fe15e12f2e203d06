// Vectors of 16 lanes on AVX-512 with VNNI and BF16: as avx512.h, with instructions for the dot products and for bfloat16.
#pragma once
#include "avx512.h"

namespace inferloom::avx512_vnni_bf16 {

struct Simd : avx512::Simd {
  struct B { __m512i bytes; };
  using N = B;

  static constexpr bool kByteDot = true;

  SIMD_INLINE void store_bf16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
  SIMD_INLINE H pack(F low, F high) { return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low))}; }
  SIMD_INLINE H interleave(F even, F odd) {
    const __m256i a = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)), b = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd));
    return {_mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16))};
  }
  SIMD_INLINE F bf16_dot(F acc, H a, H b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a.pairs), reinterpret_cast<__m512bh>(b.pairs));
  }

  SIMD_INLINE B bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  SIMD_INLINE void join(const uint8_t* upper, const uint8_t* lower, B& first, B& second) {
    avx512::Simd::join(_mm512_loadu_si512(upper), _mm512_loadu_si512(lower), first.bytes, second.bytes);
  }
  SIMD_INLINE void nibbles(const uint8_t* p, N& low, N& high) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    low = {_mm512_and_si512(both, mask)};
    high = {_mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  }
  SIMD_INLINE void levels(const uint8_t* p, I zero, N& low, N& high) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(60);
    low = {_mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(both, 2), mask), zero)};
    high = {_mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 2), mask), zero)};
  }
  // The high nibbles stay where they are: sixteen times their value.
  SIMD_INLINE void nibbles_in_place(const uint8_t* p, B& low, B& high) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    low = {_mm512_and_si512(both, mask)};
    high = {_mm512_andnot_si512(mask, both)};
  }
  // In each lane the low six bits of a half, less `bias`, as a word below a word of zero: a factor of `dot_words`.
  SIMD_INLINE I low_six_less(const uint16_t* p, int bias) {
    const __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_sub_epi16(_mm512_and_si512(halves, _mm512_set1_epi32(63)), _mm512_set1_epi32(bias));
  }
  // acc + the low word of a lane × the low word of *x; the lane's high word is zero.
  SIMD_INLINE I dot_words(I acc, I words, const int32_t* x) { return _mm512_dpwssd_epi32(acc, words, _mm512_set1_epi32(*x)); }
  static constexpr int kByteBias = 128;
  SIMD_INLINE I dot_start(int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  // Written out, because GCC 12 makes two instructions of the intrinsic with a broadcast operand, and volatile, because it undoes
  // the order of `dot_bytes`.
  SIMD_INLINE I dot(I acc, B w, const int8_t* x) {
    struct Quad { int8_t columns[4]; };
    asm volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w.bytes), "m"(*reinterpret_cast<const Quad*>(x)));
    return acc;
  }
  SIMD_INLINE I dot_nibbles(const N (&w)[8], const int8_t* x) {
    __m512i acc = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) acc = dot(acc, w[q], x + 4 * q);
    return acc;
  }
  template <int T>
  SIMD_INLINE void dot_nibbles(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t) d[t] = _mm512_setzero_si512();
    dot_bytes<T>(w, x, d);
  }
  template <int T>
  SIMD_INLINE void dot_levels(const N (&w)[8], const int8_t* x, I (&d)[T]) { dot_bytes<T>(w, x, d); }
  // The chains of T tokens in step: a token's own eight products wait for each other, and a window of one chain after the other does not
  // reach far enough ahead (87 % of the peak with one, 99 % with two at a time).
  template <int T>
  SIMD_INLINE void dot_bytes(const B (&w)[8], const int8_t* x, I (&d)[T]) {
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) d[t] = dot(d[t], w[q], x + 32 * t + 4 * q);
    }
  }
};

}  // namespace inferloom::avx512_vnni_bf16
