// What the standalone tests share: checks that print and count, and the instruction sets of this machine.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "../operators.h"

namespace inferloom {

inline int failures = 0;

#define CHECK(condition, ...)                       \
  do {                                              \
    if (!(condition)) {                             \
      ++::inferloom::failures;                      \
      std::printf("%s:%d: ", __FILE__, __LINE__);   \
      std::printf(__VA_ARGS__);                     \
      std::printf("\n");                            \
    }                                               \
  } while (false)

// Runs a test with the operators of every instruction set that this processor has, or with those that
// INFERLOOM_ISA names; the result is main's.
inline int run_tests(void (*test)(const Operators&)) {
  for (Isa isa : {Isa::PORTABLE, Isa::AVX2, Isa::AVX512, Isa::AVX512_VNNI_BF16}) {
    if (!isa_available(isa) || (std::getenv("INFERLOOM_ISA") && isa != best_isa())) continue;
    std::printf("%s\n", operators(isa).name);
    test(operators(isa));
  }
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace inferloom
