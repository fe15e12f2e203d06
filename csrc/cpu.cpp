#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace inferloom {

namespace {

#if defined(__x86_64__)

// Bits of XCR0 (Intel SDM vol. 1, 13.3): the register state that the operating system saves when it switches tasks.
constexpr uint32_t kSavesYmm = 0x06;
constexpr uint32_t kSavesZmm = 0xe6;

uint32_t saved_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

CpuFeatures detect() {
  CpuFeatures found;
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return found;
  const bool fma_f16c = (ecx & bit_FMA) && (ecx & bit_F16C) && (ecx & bit_AVX);
  const uint32_t saved = saved_state();
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;
  const uint32_t deepest = eax;
  constexpr uint32_t kWide = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
  constexpr uint32_t kHaswell = bit_AVX2 | bit_BMI | bit_BMI2;
  found.avx2 = fma_f16c && (ebx & kHaswell) == kHaswell && (saved & kSavesYmm) == kSavesYmm;
  found.avx512 = found.avx2 && (ebx & kWide) == kWide && (saved & kSavesZmm) == kSavesZmm;
  found.vnni = found.avx512 && (ecx & bit_AVX512VNNI);
  if (deepest >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx))
    found.bf16 = found.avx512 && (eax & bit_AVX512BF16);
  return found;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace inferloom
