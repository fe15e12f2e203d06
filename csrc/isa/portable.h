// Vectors of 16 lanes in plain C++ (GCC's and Clang's vector extension, which any processor runs).
#pragma once
#include "simd.h"

namespace inferloom::portable {

struct Simd {
  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef int32_t M __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));
  typedef uint16_t Half __attribute__((vector_size(32)));
  struct H { U pairs; };
  struct B { U quads; };
  using N = B;

  static constexpr int kRegisters = 8;  // vectors of F that fit the registers beside a few operands
  static constexpr int kTile = 4;     // tokens that a quantised linear computes together
  static constexpr int kRowTile = 2;  // tokens, and
  static constexpr int kRowBand = 4;  // rows, that a row-major linear computes together
  static constexpr bool kByteDot = false;  // an instruction for `dot`

  // Memory. The forms with a count touch the first `n` (0 … 16) elements alone; lanes past them read as zero.
  SIMD_INLINE F load(const float* p) { F v; std::memcpy(&v, p, 64); return v; }
  SIMD_INLINE F load(const float* p, int n) {
    F v = zero();
    for (int i = 0; i < 16; ++i) if (i < n) v[i] = p[i];
    return v;
  }
  SIMD_INLINE void store(float* p, F v) { std::memcpy(p, &v, 64); }
  SIMD_INLINE void store(float* p, F v, int n) { for (int i = 0; i < 16; ++i) if (i < n) p[i] = v[i]; }
  SIMD_INLINE I load(const int32_t* p) { I v; std::memcpy(&v, p, 64); return v; }
  SIMD_INLINE void store(int32_t* p, I v) { std::memcpy(p, &v, 64); }
  SIMD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
  SIMD_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }  // to the second-level cache

  // Floats.
  SIMD_INLINE F zero() { return F{}; }
  SIMD_INLINE F set(float x) { return F{} + x; }
  SIMD_INLINE F add(F a, F b) { return a + b; }
  SIMD_INLINE F sub(F a, F b) { return a - b; }
  SIMD_INLINE F mul(F a, F b) { return a * b; }
  SIMD_INLINE F div(F a, F b) { return a / b; }
  SIMD_INLINE F fma(F a, F b, F c) { return a * b + c; }  // a b + c, rounded once where the processor can
  SIMD_INLINE F max(F a, F b) { return a > b ? a : b; }
  SIMD_INLINE F min(F a, F b) { return a < b ? a : b; }
  SIMD_INLINE F abs(F a) { return as_float(as_int(a) & 0x7fffffff); }
  SIMD_INLINE F sqrt(F a) {
    for (int i = 0; i < 16; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
  }
  SIMD_INLINE F round(F a) {  // to the nearest integer, ties to even; |a| < 2^22
    const F magic = set(12582912.0f);
    return (a + magic) - magic;
  }
  SIMD_INLINE F scale2(F a, F n) {  // a · 2^n, n an integer in −126 … 127
    return a * as_float((to_int(n) + 127) << 23);
  }
  SIMD_INLINE float sum(F a) {
    float s[16];
    store(s, a);
    for (int w = 8; w; w /= 2) for (int i = 0; i < w; ++i) s[i] += s[i + w];
    return s[0];
  }
  SIMD_INLINE float max_of(F a) {
    float m = a[0];
    for (int i = 1; i < 16; ++i) m = a[i] > m ? a[i] : m;
    return m;
  }
  // out[0 … 3] = the sums of a, b, c, d, each in the same order of additions.
  SIMD_INLINE void sum4(F a, F b, F c, F d, float* out) { out[0] = sum(a); out[1] = sum(b); out[2] = sum(c); out[3] = sum(d); }

  // Integers.
  SIMD_INLINE I zero_int() { return I{}; }
  SIMD_INLINE I set_int(int32_t x) { return I{} + x; }
  SIMD_INLINE I add(I a, I b) { return a + b; }
  SIMD_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
  SIMD_INLINE I to_int(F a) { return __builtin_convertvector(round(a), I); }  // nearest, ties to even; |a| < 2^22
  SIMD_INLINE int32_t sum(I a) {
    int32_t s = 0;
    for (int i = 0; i < 16; ++i) s += a[i];
    return s;
  }
  SIMD_INLINE void store_int8(int8_t* p, I v) {  // saturated
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i] < -128 ? -128 : v[i] > 127 ? 127 : v[i]);
  }
  SIMD_INLINE I load_int8(const int8_t* p) {
    I v;
    for (int i = 0; i < 16; ++i) v[i] = p[i];
    return v;
  }
  SIMD_INLINE I load_uint8(const uint8_t* p) {
    I v;
    for (int i = 0; i < 16; ++i) v[i] = p[i];
    return v;
  }

  // Masks.
  SIMD_INLINE M first(int n) {  // lanes 0 … n − 1
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < n;
  }
  SIMD_INLINE M is_nan(F a) { return a != a; }
  SIMD_INLINE M greater(F a, F b) { return a > b; }
  SIMD_INLINE bool any(M m) {
    int32_t s = 0;
    for (int i = 0; i < 16; ++i) s |= m[i];
    return s != 0;
  }
  SIMD_INLINE uint32_t bits(M m) {  // bit i: lane i
    uint32_t b = 0;
    for (int i = 0; i < 16; ++i) b |= m[i] ? 1u << i : 0u;
    return b;
  }
  SIMD_INLINE F select(M m, F yes, F no) { return m ? yes : no; }
  SIMD_INLINE I select(M m, I yes, I no) { return m ? yes : no; }

  // Sixteen-bit floats; conversions to them round to nearest, ties to even.
  SIMD_INLINE F load_bf16(const uint16_t* p) {
    Half h;
    std::memcpy(&h, p, 32);
    return as_float(__builtin_convertvector(h, I) << 16);
  }
  SIMD_INLINE F load_bf16(const uint16_t* p, int n) {
    uint16_t h[16] = {};
    for (int i = 0; i < 16; ++i) if (i < n) h[i] = p[i];
    return load_bf16(h);
  }
  SIMD_INLINE void store_bf16(uint16_t* p, F v) {
    const U r = rounded_bf16(v);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(r[i]);
  }
  SIMD_INLINE F load_f16(const uint16_t* p) {
    Half h;
    std::memcpy(&h, p, 32);
    // Exponent and mantissa move to their places; one multiplication sets the exponent right, subnormals included.
    const U u = __builtin_convertvector(h, U);
    const U body = (u & 0x7fffu) << 13;
    const F magnitude = as_float((I)body) * set(0x1p112f);
    const U special = (U)((I)(u & 0x7c00u) == 0x7c00) & 0x7f800000u;  // infinities, and NaNs by what stays of the mantissa
    return as_float((I)((U)as_int(magnitude) | special | ((u & 0x8000u) << 16)));
  }
  SIMD_INLINE F load_f16(const uint16_t* p, int n) {
    uint16_t h[16] = {};
    for (int i = 0; i < 16; ++i) if (i < n) h[i] = p[i];
    return load_f16(h);
  }

  // Pairs of bfloat16: `bf16_dot` adds to lane i the products of pair i. Operands denormal or not, no order is promised within a pair.
  SIMD_INLINE H load_pairs(const uint16_t* p) { H h; std::memcpy(&h, p, 64); return h; }
  SIMD_INLINE H load_pairs(const uint16_t* p, int n) {  // n of 32 elements, zero past them
    uint16_t h[32] = {};
    for (int i = 0; i < 32; ++i) if (i < n) h[i] = p[i];
    return load_pairs(h);
  }
  SIMD_INLINE void store_pairs(uint16_t* p, H h) { std::memcpy(p, &h, 64); }
  SIMD_INLINE H set_pair(uint32_t pair) { return {U{} + pair}; }
  SIMD_INLINE H set_pair(const uint16_t* p) { uint32_t pair; std::memcpy(&pair, p, 4); return set_pair(pair); }
  SIMD_INLINE H pack(F low, F high) {  // elements 0 … 15, then 16 … 31
    uint16_t h[32];
    store_bf16(h, low);
    store_bf16(h + 16, high);
    return load_pairs(h);
  }
  SIMD_INLINE H interleave(F even, F odd) { return {rounded_bf16(even) | rounded_bf16(odd) << 16}; }  // pair i = even[i], odd[i]
  SIMD_INLINE F bf16_dot(F acc, H a, H b) {
    acc += as_float((I)(a.pairs << 16)) * as_float((I)(b.pairs << 16));
    return acc + as_float((I)(a.pairs & 0xffff0000u)) * as_float((I)(b.pairs & 0xffff0000u));
  }

  // Dot products of bytes: a lane's four bytes are taken out of its 32 bits one at a time.
  SIMD_INLINE B bytes(const uint8_t* p) { B b; std::memcpy(&b, p, 64); return b; }
  // From vectors of upper and of lower halves: the bytes of their low nibbles, and those of their high ones.
  SIMD_INLINE void join(const uint8_t* upper, const uint8_t* lower, B& first, B& second) {
    const B u = bytes(upper), l = bytes(lower);
    first = {(u.quads & 0x0f0f0f0fu) << 4 | (l.quads & 0x0f0f0f0fu)};
    second = {(u.quads & 0xf0f0f0f0u) | (l.quads >> 4 & 0x0f0f0f0fu)};
  }
  SIMD_INLINE void nibbles(const uint8_t* p, N& low, N& high) {
    const B b = bytes(p);
    low = {b.quads & 0x0f0f0f0fu};
    high = {(b.quads >> 4) & 0x0f0f0f0fu};
  }
  static constexpr int kByteBias = 0;  // that `dot` leaves in the weight bytes
  SIMD_INLINE I dot_start(int32_t) { return zero_int(); }
  SIMD_INLINE I dot(I acc, B w, const int8_t* x) {
    for (int c = 0; c < 4; ++c) acc += ((I)((w.quads >> (8 * c)) & 255u) - 128) * static_cast<int32_t>(x[c]);
    return acc;
  }
  // Eight quads (32 columns) at once.
  SIMD_INLINE I dot_nibbles(const N (&w)[8], const int8_t* x) {
    I acc = zero_int();
#pragma GCC unroll 1
    for (int q = 0; q < 8; ++q)
      for (int c = 0; c < 4; ++c) acc += (I)((w[q].quads >> (8 * c)) & 255u) * static_cast<int32_t>(x[4 * q + c]);
    return acc;
  }
  // Levels: 4 · nibble + zero, below 128; `zero` repeats a row's in the four bytes of its lane, as `low_six` does with the low six bits
  // of each of sixteen numbers.
  SIMD_INLINE I low_six(const uint16_t* p) {
    Half h;
    std::memcpy(&h, p, 32);
    return (__builtin_convertvector(h, I) & 63) * 0x01010101;
  }
  SIMD_INLINE void levels(const uint8_t* p, I zero, N& low, N& high) {
    const B b = bytes(p);
    low = {((b.quads << 2) & 0x3c3c3c3cu) + (U)zero};
    high = {((b.quads >> 2) & 0x3c3c3c3cu) + (U)zero};
  }
  // The same for T tokens whose activations lie 32 bytes apart; `dot_levels` and `dot_bytes` add to what `d` holds.
  template <int T>
  SIMD_INLINE void dot_nibbles(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t) d[t] = dot_nibbles(w, x + 32 * t);
  }
  template <int T>
  SIMD_INLINE void dot_levels(const N (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t) d[t] += dot_nibbles(w, x + 32 * t);
  }
  template <int T>
  SIMD_INLINE void dot_bytes(const B (&w)[8], const int8_t* x, I (&d)[T]) {
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 1
      for (int q = 0; q < 8; ++q) d[t] = dot(d[t], w[q], x + 32 * t + 4 * q);
  }

 private:
  SIMD_INLINE I as_int(F a) { I v; std::memcpy(&v, &a, 64); return v; }
  SIMD_INLINE F as_float(I a) { F v; std::memcpy(&v, &a, 64); return v; }
  SIMD_INLINE U rounded_bf16(F v) {
    const U u = (U)as_int(v);
    const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const U quiet_nan = (u >> 16) | 0x40u;  // rounding could carry a NaN into infinity
    return ((U)(v != v) & quiet_nan) | (~(U)(v != v) & rounded);
  }
};

}  // namespace inferloom::portable
