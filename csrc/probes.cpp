#include "probes.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>

#include "cpu.h"
#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inferloom {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Anonymous memory in huge pages where the kernel gives them.
class Region {
 public:
  explicit Region(size_t bytes) : bytes_(bytes) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(mapped);
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~Region() { munmap(data_, bytes_); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_;
};

// Reads [begin, end), multiples of 256 bytes, and returns a sum that the compiler cannot do without. Lines are asked
// for a little more than a page ahead, which the hardware's prefetchers do not cross by themselves.
constexpr size_t kAhead = 5120;

uint64_t read_through(const uint8_t* begin, const uint8_t* end) {
  using Vector = uint64_t __attribute__((vector_size(16)));
  Vector sum[4] = {};
  for (const uint8_t* at = begin; at < end; at += 256) {
    for (size_t line = 0; line < 256; line += 64) {
      __builtin_prefetch(at + kAhead + line, 0, 3);
      Vector part[4];
      std::memcpy(part, at + line, 64);
      for (int i = 0; i < 4; ++i) sum[i] ^= part[i];
    }
  }
  const Vector all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1];
}

// ---- Arithmetic from registers. Sixteen independent accumulators hide the latency of two pipes.

constexpr int kChains = 16;

// Rounds of kChains instructions; returns the products in one instruction, so that ops = rounds * kChains * products
// * 2.
using PeakLoop = float (*)(int64_t rounds);
struct PeakCode {
  PeakLoop loop;
  int products;
};

float float32_baseline(int64_t rounds) {
  using Vector = float __attribute__((vector_size(16)));
  Vector acc[kChains] = {};
  Vector factor = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * factor + factor;
  }
  float sum = 0;
  for (const Vector& vector : acc) sum += vector[0];
  return sum;
}

float int8_baseline(int64_t rounds) {
  int32_t acc[kChains] = {};
  int32_t factor = 3;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+r"(factor));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] += static_cast<int8_t>(acc[i]) * factor;
  }
  int32_t sum = 0;
  for (int32_t value : acc) sum += value;
  return static_cast<float>(sum);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) float float32_avx2(int64_t rounds) {
  __m256 acc[kChains - 4];  // four registers are left for the factors
  __m256 factor = _mm256_set1_ps(0.5f);
  for (__m256& vector : acc) vector = factor;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(factor));
#pragma GCC unroll 12
    for (int i = 0; i < kChains - 4; ++i) acc[i] = _mm256_fmadd_ps(acc[i], factor, factor);
  }
  float sum = 0;
  for (__m256& vector : acc) sum += _mm256_cvtss_f32(vector);
  return sum;
}

// Bytes without VNNI: pairs to 16 bits, pairs to 32 bits, sum (three instructions for 32 products).
__attribute__((target("avx2,fma"))) float int8_avx2(int64_t rounds) {
  __m256i acc[kChains - 4];
  __m256i bytes = _mm256_set1_epi8(1);
  const __m256i ones = _mm256_set1_epi16(1);
  for (__m256i& vector : acc) vector = ones;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains - 4; ++i) {
      asm volatile("" : "+x"(bytes));
      acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, bytes), ones));
    }
  }
  int32_t sum = 0;
  for (__m256i& vector : acc) sum += _mm256_cvtsi256_si32(vector);
  return static_cast<float>(sum);
}

__attribute__((target("avx512f"))) float float32_avx512(int64_t rounds) {
  __m512 acc[kChains];
  __m512 factor = _mm512_set1_ps(0.5f);
  for (__m512& vector : acc) vector = factor;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(factor));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], factor, factor);
  }
  float sum = 0;
  for (__m512& vector : acc) sum += _mm512_cvtss_f32(vector);
  return sum;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) float int8_vnni(int64_t rounds) {
  __m512i acc[kChains];
  __m512i bytes = _mm512_set1_epi32(0x01010101);
  for (__m512i& vector : acc) vector = bytes;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(bytes));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], bytes, bytes);
  }
  int32_t sum = 0;
  for (__m512i& vector : acc) sum += _mm512_cvtsi512_si32(vector);
  return static_cast<float>(sum);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) float bfloat16_avx512(int64_t rounds) {
  __m512 acc[kChains];
  __m512 half = _mm512_set1_ps(0.5f);
  for (__m512& vector : acc) vector = half;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(half));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)half, (__m512bh)half);
  }
  float sum = 0;
  for (__m512& vector : acc) sum += _mm512_cvtss_f32(vector);
  return sum;
}

#endif

// `products` counts a round's instructions as kChains of them, also where registers allow fewer.
PeakCode peak_code(PeakKind kind) {
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
  switch (kind) {
    case PeakKind::FLOAT32:
#if defined(__x86_64__)
      if (cpu.avx512) return {float32_avx512, kChains * 16};
      if (cpu.avx2) return {float32_avx2, (kChains - 4) * 8};
#endif
      return {float32_baseline, kChains * 4};
    case PeakKind::BFLOAT16:
#if defined(__x86_64__)
      if (cpu.bf16) return {bfloat16_avx512, kChains * 32};
#endif
      return {nullptr, 0};
    case PeakKind::INT8:
#if defined(__x86_64__)
      if (cpu.vnni) return {int8_vnni, kChains * 64};
      if (cpu.avx2) return {int8_avx2, (kChains - 4) * 32};
#endif
      return {int8_baseline, kChains};
  }
  return {nullptr, 0};
}

}  // namespace

std::vector<double> memory_bandwidth(size_t bytes, int threads, int repeats) {
  const size_t share = std::max<size_t>(bytes / static_cast<size_t>(threads) / 256 * 256, 256);
  const size_t total = share * static_cast<size_t>(threads);
  Region region(total + 2 * kAhead);
  std::atomic<uint64_t> unused{0};
  std::vector<double> rates;
#pragma omp parallel num_threads(threads)
  {
    // Each thread touches its own share first, so that it lies in its own memory where there are several.
    uint8_t* mine = region.data() + share * static_cast<size_t>(omp_get_thread_num());
    std::memset(mine, 1 + omp_get_thread_num(), share);
  }
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const Clock::time_point start = Clock::now();
#pragma omp parallel num_threads(threads)
    {
      const uint8_t* mine = region.data() + share * static_cast<size_t>(omp_get_thread_num());
      unused.fetch_xor(read_through(mine, mine + share), std::memory_order_relaxed);
    }
    rates.push_back(static_cast<double>(total) / seconds_since(start));
  }
  return rates;
}

double peak(PeakKind kind, int threads, double seconds) {
  const PeakCode code = peak_code(kind);
  if (!code.loop) return 0;
  constexpr int64_t kRounds = 20000;  // tens of microseconds: the clock costs nothing beside it
  double total = 0;
  std::atomic<float> unused{0};
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    float kept = code.loop(kRounds);
#pragma omp barrier
    int64_t rounds = 0;
    const Clock::time_point start = Clock::now();
    do {
      kept += code.loop(kRounds);
      rounds += kRounds;
    } while (seconds_since(start) < seconds);
    total += static_cast<double>(rounds) * code.products * 2 / seconds_since(start);
    unused.store(kept, std::memory_order_relaxed);
  }
  return total;
}

double barrier_latency(int threads, int rounds) {
  Barrier barrier;
  double elapsed = 0;
#pragma omp parallel num_threads(threads)
  {
    const int there = omp_get_num_threads();
    barrier.wait(there);
    const Clock::time_point start = Clock::now();
    for (int round = 0; round < rounds; ++round) barrier.wait(there);
    if (omp_get_thread_num() == 0) elapsed = seconds_since(start);
  }
  return elapsed / rounds;
}

double region_latency(int threads, int rounds) {
  std::atomic<int> entered{0};
#pragma omp parallel num_threads(threads)
  entered.fetch_add(1, std::memory_order_relaxed);
  const Clock::time_point start = Clock::now();
  for (int round = 0; round < rounds; ++round) {
#pragma omp parallel num_threads(threads)
    entered.fetch_add(1, std::memory_order_relaxed);
  }
  return seconds_since(start) / rounds;
}

}  // namespace inferloom
