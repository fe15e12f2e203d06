// The tables that the leaf files define: csrc/leaf/<name>.cpp is compiled for one instruction set and defines the one
// of its name. Only `dispatch.cpp` reads them, and hands out none that the processor cannot run.
#pragma once
#include "../operators.h"

namespace inferloom {

namespace portable {
extern const Operators table;
}
namespace avx2 {
extern const Operators table;
}
namespace avx512 {
extern const Operators table;
}
namespace avx512_vnni_bf16 {
extern const Operators table;
}

}  // namespace inferloom
