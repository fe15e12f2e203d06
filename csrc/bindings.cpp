// The extension module `inferloom.kernels.native._native`: what this build and this processor are.
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <omp.h>

#include <string>
#include <vector>

#include "cpu.h"
#include "operators.h"

namespace nb = nanobind;

namespace inferloom {

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::PORTABLE, Isa::AVX2, Isa::AVX512, Isa::AVX512_VNNI_BF16}) {
    if (isa_available(isa)) names.emplace_back(operators(isa).name);
  }
  return names;
}

std::vector<std::string> cpu_feature_names() {
  const CpuFeatures& cpu = cpu_features();
  std::vector<std::string> names;
  if (cpu.avx2) names.emplace_back("avx2");
  if (cpu.avx512) names.emplace_back("avx512");
  if (cpu.vnni) names.emplace_back("avx512_vnni");
  if (cpu.bf16) names.emplace_back("avx512_bf16");
  return names;
}

}  // namespace

}  // namespace inferloom

NB_MODULE(_native, module) {
  using namespace inferloom;
  module.doc() = "Native operators of Inferloom. Use `inferloom.kernels.native.library`, which loads it.";
  module.def(
      "isa", [] { return std::string(operators(best_isa()).name); },
      "Name of the instruction set in use: the widest available, or INFERLOOM_ISA's. RuntimeError where that one is "
      "not.");
  module.def("isas", &available_isas, "Instruction sets that this build has and this processor runs, widest last.");
  module.def("cpu_features", &cpu_feature_names, "Of avx2, avx512, avx512_vnni, avx512_bf16: what the processor has.");
  module.def("max_threads", &omp_get_max_threads, "Threads of a parallel region that names no number.");
  bind_operators(module);
  bind_attention(module);
  bind_sampling(module);
#ifdef INFERLOOM_HAS_decoder
  bind_decoder(module);
#endif
  bind_probes(module);
}
