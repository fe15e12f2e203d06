// Which table of operators this process uses: the widest that the build has and the processor runs, or the one that
// INFERLOOM_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "leaf/tables.h"
#include "operators.h"

namespace inferloom {

namespace {

constexpr Isa kAll[] = {Isa::PORTABLE, Isa::AVX2, Isa::AVX512, Isa::AVX512_VNNI_BF16};

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::PORTABLE:
      return "portable";
    case Isa::AVX2:
      return "avx2";
    case Isa::AVX512:
      return "avx512";
    case Isa::AVX512_VNNI_BF16:
      return "avx512_vnni_bf16";
  }
  return "unknown";
}

// Null where this build has no such leaf (CMakeLists.txt defines a macro for each that it compiles).
const Operators* table_of(Isa isa) {
  switch (isa) {
#ifdef INFERLOOM_LEAF_portable
    case Isa::PORTABLE:
      return &portable::table;
#endif
#ifdef INFERLOOM_LEAF_avx2
    case Isa::AVX2:
      return &avx2::table;
#endif
#ifdef INFERLOOM_LEAF_avx512
    case Isa::AVX512:
      return &avx512::table;
#endif
#ifdef INFERLOOM_LEAF_avx512_vnni_bf16
    case Isa::AVX512_VNNI_BF16:
      return &avx512_vnni_bf16::table;
#endif
    default:
      return nullptr;
  }
}

bool runs_here(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
  switch (isa) {
    case Isa::PORTABLE:
      return true;
    case Isa::AVX2:
      return cpu.avx2;
    case Isa::AVX512:
      return cpu.avx512;
    case Isa::AVX512_VNNI_BF16:
      return cpu.vnni && cpu.bf16;
  }
  return false;
}

std::string available_names() {
  std::string names;
  for (Isa isa : kAll) {
    if (!isa_available(isa)) continue;
    if (!names.empty()) names += ", ";
    names += name_of(isa);
  }
  return names.empty() ? "none" : names;
}

std::string why_not(Isa isa) {
  const std::string name = name_of(isa);
  if (!table_of(isa)) return "this build of inferloom has no operators for the instruction set '" + name + "'";
  return "this processor (or its operating system) does not run the instruction set '" + name + "'";
}

}  // namespace

bool isa_available(Isa isa) { return table_of(isa) && runs_here(isa); }

const Operators& operators(Isa isa) {
  if (!isa_available(isa)) throw std::runtime_error(why_not(isa) + "; there are: " + available_names() + ".");
  return *table_of(isa);
}

Isa best_isa() {
  if (const char* forced = std::getenv("INFERLOOM_ISA"); forced && *forced) {
    for (Isa isa : kAll) {
      if (std::strcmp(forced, name_of(isa)) != 0) continue;
      if (isa_available(isa)) return isa;
      throw std::runtime_error("INFERLOOM_ISA=" + std::string(forced) + ": " + why_not(isa) +
                               "; there are: " + available_names() + ".");
    }
    throw std::runtime_error("INFERLOOM_ISA=" + std::string(forced) +
                             " names no instruction set; there are: " + available_names() + ".");
  }
  Isa best = Isa::PORTABLE;
  for (Isa isa : kAll) {
    if (isa_available(isa)) best = isa;
  }
  return best;
}

}  // namespace inferloom
