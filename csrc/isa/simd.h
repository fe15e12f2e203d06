// What every csrc/isa/<name>.h provides: one struct `Simd` of static functions over vectors of 16 lanes. Kernels are templates over
// it, so that each operator is written once. A leaf (csrc/leaf/) includes one of these headers and is compiled for its processors.
//
//   F  16 floats          I  16 int32          M  a mask of 16 lanes
//   H  32 bfloat16, as 16 pairs of neighbours
//   B  64 weight bytes (16 rows × 4 columns) made ready for `dot`;  N  the same of nibbles for `dot_nibbles`
//
// Memory may lie at any address. All functions are inlined into the kernel that calls them: a function of a wide leaf that stayed a symbol of its own could be
// chosen by the linker for the baseline build. For the same reason, every function template of csrc/kernels has `Simd` among its
// parameters.
//
// `dot` adds, lane by lane (rows), four products of weight bytes and int8 activations (−127 … 127); every instruction set gives the
// exact integer. Weight bytes are stored with a bias of 128; where the dot product wants unsigned bytes it leaves the bias in, and the caller starts from
// `dot_start(sum of the activations)`, which takes it out again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Vectors travel by value between functions that are all inlined: their calling convention is of no concern.
#pragma GCC diagnostic ignored "-Wpsabi"
// GCC 12's own immintrin.h starts undefined vectors from themselves (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define SIMD_INLINE [[gnu::always_inline]] static inline
