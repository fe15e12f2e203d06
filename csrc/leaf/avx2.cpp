// The operators on x86-64 with AVX2, FMA and F16C.
#include "../isa/avx2.h"
#include "table.h"

namespace inferloom::avx2 {

const Operators table = make_table<Simd>("avx2");

}  // namespace inferloom::avx2
