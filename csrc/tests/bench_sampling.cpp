// What it costs to draw a token: microseconds a row on one thread, beside one pass over the row. In `sharp` … `close`
// most tokens are far below 40 that matter more or less; in the others the probability falls with a power of the rank.
// The row lies in the caches, as the output matrix leaves it.
//   bench_sampling [vocabulary]
// INFERLOOM_ISA chooses the instruction set.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../operators.h"
#include "../sampling.h"

using namespace inferloom;

namespace {

std::vector<float> row_of(int vocab, float spread, float lead, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& x : row) x = spread * normal(random);
  for (int i = 0; i < 40; ++i) row[random() % row.size()] = 4 * spread + lead - 0.15f * lead * static_cast<float>(i);
  return row;
}

std::vector<float> ranked(int vocab, float power, unsigned seed) {
  std::vector<float> row(static_cast<size_t>(vocab));
  for (int i = 0; i < vocab; ++i) row[static_cast<size_t>(i)] = -power * std::log(static_cast<float>(i + 1));
  std::shuffle(row.begin(), row.end(), std::mt19937(seed));
  return row;
}

template <class Work>
double microseconds(Work work) {
  std::vector<double> times;
  const double until = omp_get_wtime() + 0.3;
  while (omp_get_wtime() < until) {
    const double start = omp_get_wtime();
    for (int i = 0; i < 20; ++i) work(i);
    times.push_back((omp_get_wtime() - start) / 20);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2] * 1e6;
}

}  // namespace

int main(int argc, char** argv) {
  const int vocab = argc > 1 ? std::atoi(argv[1]) : 151936;
  const Operators& op = operators(best_isa());
  std::printf("%s, %d columns\n%-10s %8s %8s %8s %8s %8s %8s %8s\n", op.name, vocab, "row", "maxima", "greedy", "free",
              "p 0.9", "T.7 p.95", "p 0.999", "k 50 p.9");
  const struct {
    const char* name;
    float spread, lead;
  } shapes[] = {{"sharp", 2.5f, 12}, {"usual", 2.5f, 6},     {"flat", 2.5f, 1},     {"close", 0.5f, 1},
                {"rank^-2", 0, 2},   {"rank^-1.5", 0, 1.5f}, {"rank^-1.2", 0, 1.2f}};
  for (const auto& shape : shapes) {
    const std::vector<float> row =
        shape.spread > 0 ? row_of(vocab, shape.spread, shape.lead, 7) : ranked(vocab, shape.lead, 7);
    std::vector<float> tops(static_cast<size_t>(vocab / kMaximumBlock + 1));
    const auto drawn = [&](Draw draw) {
      return microseconds([&](int i) {
        int32_t token;
        draw.dice = 0.05 * i;
        sample(op, row.data(), vocab, vocab, &draw, 1, &token, 1);
      });
    };
    std::printf("%-10s %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f\n", shape.name,
                microseconds([&](int) { op.sampling.maxima(row.data(), vocab, tops.data()); }),
                drawn({0, 1.0, 0, 0.0f, 0.0f, 0}), drawn({0, 1.0, 0, 1.0f, 0.0f, 0}), drawn({0, 0.9, 0, 1.0f, 0.0f, 0}),
                drawn({0, 0.95, 0, 0.7f, 0.0f, 0}), drawn({0, 0.999, 0, 1.0f, 0.0f, 0}),
                drawn({0, 0.9, 0, 1.0f, 0.0f, 50}));
  }
}
