// The operators on any processor.
#include "../isa/portable.h"
#include "table.h"

namespace inferloom::portable {

const Operators table = make_table<Simd>("portable");

}  // namespace inferloom::portable
