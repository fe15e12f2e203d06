// The operators on x86-64 with AVX-512, VNNI and BF16.
#include "../isa/vnni.h"
#include "table.h"

namespace inferloom::avx512_vnni_bf16 {

const Operators table = make_table<Simd>("avx512_vnni_bf16");

}  // namespace inferloom::avx512_vnni_bf16
