// Sampling against a sort of the whole vocabulary in double precision.
#include "../sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../operators.h"
#include "check.h"

namespace inferloom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Weighted {
  int32_t id;
  double weight;
};

// The tokens in play with their weights, in the order in which they are drawn; as row_sampler.py defines it.
std::vector<Weighted> kept(const std::vector<float>& logits, const Draw& d) {
  const int32_t vocab = static_cast<int32_t>(logits.size());
  std::vector<int32_t> order(logits.size());
  for (int32_t i = 0; i < vocab; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float top = logits[order[0]], temperature = std::max(d.temperature, 1e-30f);
  const auto score = [&](int32_t id) { return (logits[id] - top) / temperature; };
  const float least = d.min_p > 0 ? std::log(d.min_p) : -kInfinity;
  const bool limited = d.top_k > 0 && d.top_k < vocab;
  if (limited) order.resize(d.top_k);
  double whole = 0;
  for (int32_t id : order) whole += std::exp(static_cast<double>(score(id)));
  std::vector<Weighted> out;
  if (!limited && d.top_p >= 1) {
    for (int32_t id = 0; id < vocab; ++id)
      if (score(id) >= least) out.push_back({id, std::exp(static_cast<double>(score(id)))});
    return out;
  }
  double before = 0;
  size_t nucleus = 0;
  float edge = 0;
  for (int32_t id : order) {
    const double weight = std::exp(static_cast<double>(score(id)));
    if (nucleus && !(before < d.top_p * whole)) break;
    if (score(id) >= least) out.push_back({id, weight});
    before += weight, edge = logits[id], ++nucleus;
  }
  if (limited) return out;
  for (float cut : {8.0f, 16.0f, 32.0f}) {
    size_t found = 0;
    double mass = 0;
    for (int32_t id : order)
      if (score(id) >= -cut) ++found, mass += std::exp(static_cast<double>(score(id)));
    if (found > 4096) break;
    if (mass >= d.top_p * whole) return out;
  }
  out.clear();  // a wide nucleus: in the order of ids, with all that tie with its last
  for (int32_t id = 0; id < vocab; ++id)
    if (logits[id] >= edge && score(id) >= least) out.push_back({id, std::exp(static_cast<double>(score(id)))});
  return out;
}

// Whether rounding may have moved the draw to a neighbour: the die lies at the border of the two.
bool plausible(const std::vector<Weighted>& tokens, double dice, int32_t token) {
  double sum = 0, reached = 0;
  for (const Weighted& t : tokens) sum += t.weight;
  for (const Weighted& t : tokens) {
    const double low = reached / sum;
    reached += t.weight;
    if (t.id == token) return dice >= low - 2e-5 && dice < reached / sum + 2e-5;
  }
  return false;
}

void test_draws(const Operators& operators) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform;
  for (int vocab : {1, 7, 64, 65, 1000, 5003, 20011}) {
    const int rows = 4, stride = vocab + 3;
    std::vector<float> logits(static_cast<size_t>(rows) * stride, kInfinity);
    for (int row = 0; row < rows; ++row)
      for (int i = 0; i < vocab; ++i) {
        float x = (row + 1) * normal(random);
        if (row == 2) x = std::nearbyint(x);       // many ties
        if (row == 3 && i % 3) x = -kInfinity;     // a grammar's mask
        logits[static_cast<size_t>(row) * stride + i] = x;
      }
    std::vector<Draw> draws;
    for (int i = 0; i < 240; ++i) {
      Draw d{i % rows, 1.0, uniform(random), 0.0f, 0.0f, 0};
      if (i % 5) d.temperature = i % 2 ? 1.0f : 0.7f + static_cast<float>(uniform(random));
      if (i % 3 == 1) d.top_k = 1 + static_cast<int>(random() % 1500);
      if (i % 4 == 1) d.top_p = uniform(random);
      if (i % 7 == 1) d.top_p = 0.99;
      if (i % 6 == 1) d.min_p = 0.2f * static_cast<float>(uniform(random));
      if (i % 50 == 2) d.top_p = 0;
      draws.push_back(d);
    }
    std::vector<int32_t> tokens(draws.size()), alone(1);
    sample(operators, logits.data(), stride, vocab, draws.data(), static_cast<int32_t>(draws.size()), tokens.data(), 2);
    for (size_t i = 0; i < draws.size(); ++i) {
      const Draw& d = draws[i];
      const auto begin = logits.begin() + d.row * stride;
      const std::vector<float> row(begin, begin + vocab);
      sample(operators, logits.data(), stride, vocab, &d, 1, alone.data(), 1);
      CHECK(alone[0] == tokens[i], "%s: a draw depends on the others", operators.name);
      if (d.temperature > 0)
        CHECK(plausible(kept(row, d), d.dice, tokens[i]),
              "%s: vocabulary %d, row %d, T %g, top_k %d, top_p %g, min_p %g: drew %d", operators.name, vocab,
              static_cast<int>(d.row), d.temperature, d.top_k, d.top_p, d.min_p, tokens[i]);
      else
        CHECK(tokens[i] == std::max_element(row.begin(), row.end()) - row.begin(), "%s: greedy took %d", operators.name,
              tokens[i]);
    }
  }
}

// Nuclei that are too wide to be sorted: ties, a few distinct scores, an edge among many, top-p next to 1.
void test_wide_nuclei(const Operators& operators) {
  const int vocab = 20011;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (float step : {0.0f, 0.25f, 1e-3f, 1e-7f})
    for (double top_p : {0.001, 0.3, 0.9, 0.999, 0.99999999})
      for (double dice : {0.0, 0.37, 0.9999999}) {
        std::vector<float> row(static_cast<size_t>(vocab));
        for (float& x : row) x = step > 0 ? step * std::nearbyint(normal(random) / step) : 3.0f;
        row[17] = row[vocab - 1] = -kInfinity;
        const Draw d{0, top_p, dice, 1.0f, 0.0f, 0};
        int32_t token;
        sample(operators, row.data(), vocab, vocab, &d, 1, &token, 1);
        const std::vector<Weighted> tokens = kept(row, d);
        CHECK(plausible(tokens, dice, token), "%s: steps of %g, top_p %g, dice %g: drew %d of %zu", operators.name,
              step, top_p, dice, token, tokens.size());
      }
}

void test_frequencies(const Operators& operators) {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -kInfinity, 1.0f};
  std::vector<int> counts(logits.size());
  const int times = 5000;
  for (int i = 0; i < times; ++i) {
    const Draw d{0, 1.0, (i + 0.5) / times, 1.0f, 0.0f, 0};
    int32_t token;
    sample(operators, logits.data(), 5, 5, &d, 1, &token, 1);
    ++counts[token];
  }
  double sum = 0;
  for (float x : logits) sum += std::exp(x);
  for (size_t i = 0; i < logits.size(); ++i)
    CHECK(std::fabs(counts[i] - times * std::exp(logits[i]) / sum) <= 1.5, "%s: token %zu was drawn %d times",
          operators.name, i, counts[i]);
}

void test_rows_without_a_distribution(const Operators& operators) {
  for (int vocab : {5, 300})
    for (int place : {0, vocab - 1})
      for (float strange : {std::nanf(""), kInfinity}) {
        std::vector<float> logits(static_cast<size_t>(vocab), 1.0f);
        logits[place] = strange;
        for (float temperature : {0.0f, 1.0f}) {
          const Draw d{0, 1.0, 0.5, temperature, 0.0f, 0};
          int32_t token = 0;
          sample(operators, logits.data(), vocab, vocab, &d, 1, &token, 1);
          CHECK(token == -1, "%s: drew %d from a row with %g", operators.name, token, strange);
        }
      }
  const std::vector<float> nothing(100, -kInfinity);
  const Draw d{0, 1.0, 0.5, 1.0f, 0.0f, 0};
  int32_t token = 0;
  sample(operators, nothing.data(), 100, 100, &d, 1, &token, 1);
  CHECK(token == -1, "%s: drew %d from nothing", operators.name, token);
}

void test_log_probabilities(const Operators& operators) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int vocab : {3, 100, 4099}) {
    std::vector<float> logits(static_cast<size_t>(vocab));
    for (float& x : logits) x = 4 * normal(random);
    double sum = 0;
    for (float x : logits) sum += std::exp(static_cast<double>(x));
    const int32_t best = std::min(vocab, 20), token = vocab / 2;
    const int64_t row = 0;
    float chosen;
    std::vector<int32_t> ids(static_cast<size_t>(best));
    std::vector<float> values(ids.size()), sorted = logits;
    log_probabilities(operators, logits.data(), vocab, vocab, &row, &token, 1, best, &chosen, ids.data(), values.data(),
                      1);
    CHECK(std::fabs(chosen - (logits[token] - std::log(sum))) < 1e-5, "%s: log probability off", operators.name);
    std::sort(sorted.begin(), sorted.end(), [](float a, float b) { return a > b; });
    for (int32_t i = 0; i < best; ++i)
      CHECK(logits[ids[i]] == sorted[i] && std::fabs(values[i] - (sorted[i] - std::log(sum))) < 1e-5,
            "%s: place %d of the best", operators.name, i);
  }
}

void test(const Operators& operators) {
  test_draws(operators);
  test_wide_nuclei(operators);
  test_frequencies(operators);
  test_rows_without_a_distribution(operators);
  test_log_probabilities(operators);
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(inferloom::test); }
