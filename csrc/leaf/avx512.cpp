// The operators on x86-64 with AVX-512 F, BW, DQ and VL.
#include "../isa/avx512.h"
#include "table.h"

namespace inferloom::avx512 {

const Operators table = make_table<Simd>("avx512");

}  // namespace inferloom::avx512
