// What the processor and the operating system offer, asked once.
#pragma once

namespace inferloom {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C, and the operating system saves the 256-bit registers
  bool avx512 = false;  // F, BW, CD, DQ, VL, and the operating system saves the 512-bit registers
  bool vnni = false;    // AVX512_VNNI
  bool bf16 = false;    // AVX512_BF16
};

const CpuFeatures& cpu_features();

// One pause of a spinning thread: tells the core that nothing is being computed.
inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace inferloom
