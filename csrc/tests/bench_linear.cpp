// How near the linear layers come to the machine's limits: GB/s of weights at one token, GMAC/s at more, beside what memory and the
// arithmetic units give in the same run. Two threads share the blocks, as a decoder step does.
//   bench_linear [layout [rows cols [tokens …]]]
// INFERLOOM_ISA chooses the instruction set.
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "../probes.h"
#include "matrices.h"

using namespace inferloom;

namespace {

constexpr int kThreads = 2;
const char* const kNames[] = {"F32", "F16", "BF16", "Q8_32", "Q8_ROW", "Q4_32", "Q4S_32", "Q4Z_32", "Q8_HALVES", "Q4_DITHERED"};

double now() { return omp_get_wtime(); }

// Copies of a matrix so that together they exceed the caches: a step's layers follow each other the same way.
struct Layers {
  Layers(Layout layout, int rows, int cols) {
    Random random(3);
    size_t bytes = 0;
    while (copies.size() < 2 || (bytes < (160u << 20) && copies.size() < 64)) {
      copies.push_back(random_matrix(layout, rows, cols, random, false, false));
      const Linear& w = copies.back().view;
      one = w.quantised() ? block_bytes(w) * static_cast<size_t>(w.blocks())
                          : static_cast<size_t>(rows) * static_cast<size_t>(cols) * (layout == Layout::F32 ? 4 : 2);
      bytes += one;
    }
  }
  std::vector<Matrix> copies;
  size_t one = 0;
};

// Median seconds of one layer. `best`: bounds of its results.
double time_linear(const Operators& op, const Layers& layers, int tokens, int group, bool best = false) {
  const Linear& w = layers.copies[0].view;
  Input in(tokens, w.cols, group);
  std::vector<float> x(static_cast<size_t>(tokens) * static_cast<size_t>(w.cols));
  Random random(5);
  for (float& v : x) v = random.uniform();
  op.convert(x.data(), w.cols, &in.view, 0, tokens);
  std::vector<float> y(static_cast<size_t>(tokens) * static_cast<size_t>(w.rows));
  std::vector<double> times;
  const double until = now() + 0.4;
  while (now() < until || times.size() < 3) {
    const double start = now();
#pragma omp parallel num_threads(kThreads)
    for (const Matrix& m : layers.copies) {
      const LinearJob job{&m.view, &in.view, y.data(), m.view.rows, 1.0f, false};
      const int64_t t = omp_get_thread_num(), blocks = m.view.blocks();
      const int begin = static_cast<int>(blocks * t / kThreads), end = static_cast<int>(blocks * (t + 1) / kThreads);
      if (best) {
        Peak peaks[kScreenedRows];
        std::fill_n(peaks, kScreenedRows, Peak{-INFINITY, 0});
        op.bound(job, peaks, begin, end, 0, tokens);
      } else {
        op.linear(job, begin, end, 0, tokens);
      }
#pragma omp barrier
    }
    times.push_back((now() - start) / static_cast<double>(layers.copies.size()));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void bench(const Operators& op, Layout layout, int rows, int cols, const std::vector<int>& all_tokens) {
  const Layers layers(layout, rows, cols);
  const bool halves = layout == Layout::Q8_HALVES, screen = layout == Layout::Q4_DITHERED;
  const int group = halves || layout == Layout::Q8_ROW || layout == Layout::Q4Z_32 ? 128 : 32;  // as native_weights.py chooses
  std::printf("%-11s %6d x %-5d", kNames[static_cast<int>(layout)], rows, cols);
  for (int tokens : all_tokens) {
    if ((halves || screen) && tokens <= kScreenedRows) std::printf("  %d, bounds: %.0f us", tokens, time_linear(op, layers, tokens, group, true) * 1e6);
    if (screen) continue;
    const double seconds = time_linear(op, layers, tokens, group);
    const double macs = static_cast<double>(rows) * cols * tokens / seconds * 1e-9;
    if (tokens == 1)
      std::printf("  1: %5.1f GB/s (%.0f us)", static_cast<double>(layers.one) / seconds * 1e-9, seconds * 1e6);
    else
      std::printf("  %d: %5.0f", tokens, macs);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void print_limits() {
  auto bandwidth = memory_bandwidth(256u << 20, kThreads, 5);
  std::sort(bandwidth.begin(), bandwidth.end());
  std::printf("limits: %.1f GB/s; GMAC/s: float32 %.0f, bfloat16 %.0f, int8 %.0f\n", bandwidth[2] * 1e-9, peak(PeakKind::FLOAT32, kThreads, 0.2) * 0.5e-9,
              peak(PeakKind::BFLOAT16, kThreads, 0.2) * 0.5e-9, peak(PeakKind::INT8, kThreads, 0.2) * 0.5e-9);
}

}  // namespace

int main(int argc, char** argv) {
  const Operators& op = operators(best_isa());
  std::printf("%s, %d threads; GMAC/s at each number of tokens\n", op.name, kThreads);
  print_limits();
  std::vector<int> tokens = {1, 4, 8, 16, 64, 512};
  if (argc > 4) tokens.clear();
  for (int i = 4; i < argc; ++i) tokens.push_back(std::atoi(argv[i]));
  const int shapes[][2] = {{3072, 1024}, {1024, 3072}, {576, 1536}, {151936, 1024}};
  for (int layout = 0; layout < kLayouts; ++layout) {
    if (argc > 1 ? std::string(argv[1]) != kNames[layout] && std::string(argv[1]) != "all" : layout < 2) continue;
    if (argc > 3) {
      bench(op, static_cast<Layout>(layout), std::atoi(argv[2]), std::atoi(argv[3]), tokens);
      continue;
    }
    for (const auto& s : shapes) bench(op, static_cast<Layout>(layout), s[0], s[1], s[0] > 100000 ? std::vector<int>{1, 16} : tokens);
  }
  print_limits();
}
