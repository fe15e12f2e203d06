// What this machine can do at best, measured: the limits that `inferloom doctor` and the benchmarks hold our figures
// against.
#pragma once
#include <cstddef>
#include <vector>

namespace inferloom {

enum class PeakKind : int { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

// Bytes per second of reading `bytes` of memory (far more than the caches hold) with `threads` threads, each through a
// share of its own from front to back, as a decode step reads weights; one figure for each repeat. Throws
// std::bad_alloc.
std::vector<double> memory_bandwidth(size_t bytes, int threads, int repeats);

// Operations per second (a multiply-add is two) of all `threads` together, from registers alone, with the widest
// instruction that the processor has for the kind: the sum of `kind`'s products in float32 or int32. 0 where there is
// none (bfloat16).
double peak(PeakKind kind, int threads, double seconds);

// Seconds that one barrier of a decoder step among `threads` threads takes.
double barrier_latency(int threads, int rounds);

// Seconds from before an empty parallel region of `threads` threads to after it.
double region_latency(int threads, int rounds);

}  // namespace inferloom
