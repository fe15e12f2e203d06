#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "probes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inferloom {

namespace {

constexpr int kMostThreads = 4096;

void require_threads(int threads) { require(threads >= 1 && threads <= kMostThreads, "threads must be 1 … 4096"); }

}  // namespace

void bind_probes(nb::module_& module) {
  module.def(
      "memory_bandwidth",
      [](size_t bytes, int threads, int repeats) {
        require_threads(threads);
        require(repeats >= 1, "repeats must be at least 1");
        return memory_bandwidth(bytes, threads, repeats);
      },
      "bytes"_a, "threads"_a, "repeats"_a, nb::call_guard<nb::gil_scoped_release>(),
      "Bytes per second of reading `bytes` of memory as a decode step does, for each repeat.");
  module.def(
      "peak",
      [](int kind, int threads, double seconds) {
        require_threads(threads);
        require(kind >= 0 && kind <= 2, "kind must be 0 (float32), 1 (bfloat16) or 2 (int8)");
        return peak(static_cast<PeakKind>(kind), threads, seconds);
      },
      "kind"_a, "threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
      "Operations per second from registers; kind 0 float32, 1 bfloat16, 2 int8. 0.0 where the processor has none.");
  module.def(
      "barrier_latency",
      [](int threads, int rounds) {
        require_threads(threads);
        require(rounds >= 1, "rounds must be at least 1");
        return barrier_latency(threads, rounds);
      },
      "threads"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>(), "Seconds of one spinning barrier.");
  module.def(
      "region_latency",
      [](int threads, int rounds) {
        require_threads(threads);
        require(rounds >= 1, "rounds must be at least 1");
        return region_latency(threads, rounds);
      },
      "threads"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>(), "Seconds of an empty parallel region.");
}

}  // namespace inferloom
