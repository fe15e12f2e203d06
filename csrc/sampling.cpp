#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "operators.h"

namespace inferloom {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// As in row_sampler.py, so that the same number draws the same token: where a nucleus is looked for, below the best
// score, and the tokens that are worth sorting. A wider nucleus is drawn from in the order of ids.
constexpr float kCuts[] = {8.0f, 16.0f, 32.0f};
constexpr size_t kMostSorted = 4096;
// A nucleus that is wider than that: how far below the best score its edge is looked for first, how many tokens around
// it are worth sorting, and after how many passes they are sorted however many they are (ties).
constexpr double kDeepest = 32;
constexpr size_t kMostAtEdge = 1024;
constexpr int kMostPasses = 6;

struct Candidate {
  float logit;
  int32_t id;
  bool operator<(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

// One thread's work on one row after another; the buffers are kept between rows.
class RowSampler {
 public:
  RowSampler(const SamplingOperators& operators, int32_t vocab) : ops_(operators), vocab_(vocab) {
    maxima_.resize(static_cast<size_t>((vocab + kMaximumBlock - 1) / kMaximumBlock));
    masses_.resize(static_cast<size_t>((vocab + kMassBlock - 1) / kMassBlock));
  }

  int32_t draw(const float* logits, const Draw& draw) {
    if (!look_at(logits)) return -1;
    if (!(draw.temperature > 0)) return first_best(logits, vocab_, maxima_.data(), top_);
    const ScoredRow row{logits, vocab_, top_, std::max(draw.temperature, 1e-30f),
                        draw.min_p > 0 ? std::log(draw.min_p) : -kInfinity};
    const bool limited = draw.top_k > 0 && draw.top_k < vocab_;
    if (limited) {
      best_of(logits, draw.top_k);
      weigh(row);
      return draw_among_best(row, draw, sum_of_weights());
    }
    if (draw.top_p >= 1) return draw_free(row, draw.dice);
    ScoredRow everything = row;  // the mass is the whole vocabulary's, min-p or not
    everything.least = -kInfinity;
    const double whole = whole_mass(everything);
    const double wanted = draw.top_p * whole;
    return find_nucleus(row, wanted) ? draw_among_best(row, draw, whole) : draw_nucleus(row, draw, wanted);
  }

  // The best `count` logits, best first. `look_at` has seen the row.
  const std::vector<Candidate>& best_of(const float* logits, int32_t count) {
    // The count-th largest maximum of a block is no larger than the count-th largest logit: what lies below it is out.
    float threshold = -kInfinity;
    if (static_cast<size_t>(count) <= maxima_.size()) {
      ordered_ = maxima_;
      std::nth_element(ordered_.begin(), ordered_.begin() + (count - 1), ordered_.end(), std::greater<float>());
      threshold = ordered_[static_cast<size_t>(count) - 1];
    }
    gather(logits, threshold, static_cast<size_t>(vocab_));
    if (best_.size() > static_cast<size_t>(count)) {
      std::nth_element(best_.begin(), best_.begin() + count, best_.end());
      best_.resize(static_cast<size_t>(count));
    }
    std::sort(best_.begin(), best_.end());
    return best_;
  }

  // Whether the row is a distribution; its maxima are kept.
  bool look_at(const float* logits) {
    top_ = ops_.maxima(logits, vocab_, maxima_.data());
    return std::isfinite(top_);
  }

  double log_of_sum(const float* logits) {
    return static_cast<double>(top_) + std::log(whole_mass({logits, vocab_, top_, 1.0f, -kInfinity}));
  }

 private:
  double whole_mass(const ScoredRow& row) {
    ops_.masses(row, masses_.data());
    double sum = 0;
    for (float mass : masses_) sum += mass;
    return sum;
  }

  // Into best_, in the order of ids: the logits from `threshold` on. False, and not all of them, where they are more
  // than `most`.
  bool gather(const float* logits, float threshold, size_t most) {
    best_.clear();
    float values[kMaximumBlock];
    int32_t ids[kMaximumBlock];
    for (size_t block = 0; block < maxima_.size(); ++block) {
      if (maxima_[block] < threshold) continue;
      const int32_t begin = static_cast<int32_t>(block) * kMaximumBlock;
      const int32_t found =
          ops_.within(logits, begin, std::min(kMaximumBlock, vocab_ - begin), threshold, kInfinity, values, ids);
      for (int32_t i = 0; i < found; ++i) best_.push_back({values[i], ids[i]});
      if (best_.size() > most) return false;
    }
    return true;
  }

  void weigh(const ScoredRow& row) {
    weights_.clear();
    for (const Candidate& c : best_) weights_.push_back(std::exp((c.logit - row.top) / row.temperature));
  }

  double sum_of_weights() const {
    double sum = 0;
    for (float weight : weights_) sum += weight;
    return sum;
  }

  // Whether a few tokens hold `wanted` of the mass: they are in best_ then, best first.
  bool find_nucleus(const ScoredRow& row, double wanted) {
    for (float cut : kCuts) {
      if (!gather(row.logits, row.top - cut * row.temperature, kMostSorted)) return false;
      weigh(row);
      if (sum_of_weights() < wanted) continue;
      std::sort(best_.begin(), best_.end());
      weigh(row);
      return true;
    }
    return false;
  }

  // From best_, best first, as top-p (of the mass `whole`) and min-p leave them.
  int32_t draw_among_best(const ScoredRow& row, const Draw& draw, double whole) const {
    double before = 0, kept = 0;
    size_t last = 0;
    const auto stays = [&](size_t i) {
      return (best_[i].logit - row.top) / row.temperature >= row.least && weights_[i] > 0;
    };
    for (size_t i = 0; i < best_.size() && (i == 0 || before < draw.top_p * whole); ++i) {  // top_p = 0 leaves the best
      before += weights_[i];
      if (stays(i)) kept += weights_[i], last = i;
    }
    double reached = 0;
    for (size_t i = 0; i <= last; ++i) {
      reached += weights_[i];
      if (reached > draw.dice * kept) return best_[i].id;
    }
    return best_[last].id;
  }

  // From the whole vocabulary, less what min-p forbids, in the order of ids.
  int32_t draw_free(const ScoredRow& row, double dice) {
    const double target = dice * whole_mass(row);
    size_t block = 0;  // the first that reaches the target; where rounding leaves none, the last that has mass
    double before = 0, reached = 0;
    for (size_t i = 0; i < masses_.size() && !(reached > target); ++i) {
      if (!(masses_[i] > 0)) continue;
      block = i;
      before = reached;
      reached += masses_[i];
    }
    weights_.resize(kMassBlock);
    const int32_t begin = static_cast<int32_t>(block) * kMassBlock, n = std::min(kMassBlock, vocab_ - begin);
    ops_.weights(row, begin, n, weights_.data());
    return begin + invert(weights_.data(), n, target - before);
  }

  // The first place whose cumulated weight exceeds `target`; where rounding leaves none, the last that has weight.
  static int32_t invert(const float* weights, int32_t n, double target) {
    double reached = 0;
    int32_t last = 0;
    for (int32_t i = 0; i < n; ++i) {
      if (weights[i] > 0) last = i;
      reached += weights[i];
      if (reached > target) return i;
    }
    return last;
  }

  // Top-p where it reaches far into the vocabulary: passes over the weights close in on the nucleus' edge, and the few
  // tokens around it are sorted. Tokens that tie with the nucleus' last belong to it. Drawn in the order of ids.
  int32_t draw_nucleus(const ScoredRow& row, const Draw& draw, double wanted) {
    weights_.resize(static_cast<size_t>(vocab_));
    ScoredRow everything = row;
    everything.least = -kInfinity;
    ops_.weights(everything, 0, vocab_, weights_.data());
    ScoredRow nucleus = row;
    double reached = surround_edge(wanted);
    for (Candidate& c : best_) c.logit = row.logits[c.id];
    std::sort(best_.begin(), best_.end());
    for (const Candidate& c : best_) {
      nucleus.least = std::max(row.least, (c.logit - row.top) / row.temperature);
      reached += weights_[static_cast<size_t>(c.id)];
      if (reached >= wanted) break;
    }
    return draw_free(nucleus, draw.dice);
  }

  // Into best_: the tokens among whose weights the sum, largest first, reaches `wanted`; none where only rounding keeps
  // it from that. Returns the sum of the larger ones.
  double surround_edge(double wanted) {
    float low = 0, high = 2;  // than which the best's weight is less
    double before = 0, depth = 0, span = kDeepest;  // of `high`, and from there to `low`, below the best score
    best_.clear();
    for (int pass = 1;; ++pass) {
      float edges[kWeightEdges];
      double sums[kWeightEdges];
      for (int k = 0; k < kWeightEdges; ++k)
        edges[k] = static_cast<float>(std::exp(-depth - span * (k + 1) / kWeightEdges));
      ops_.sums_from(weights_.data(), vocab_, edges, sums);
      const int k =
          static_cast<int>(std::find_if(sums, sums + kWeightEdges, [&](double sum) { return sum >= wanted; }) - sums);
      if (k == kWeightEdges && pass == 1) return 0;
      if (k < kWeightEdges) {
        if (k > 0) high = edges[k - 1], before = sums[k - 1];
        low = edges[k];
        depth += span * k / kWeightEdges;
        span /= kWeightEdges;
      }
      const bool last = pass == kMostPasses || k == kWeightEdges;
      if (gather_weights(low, high, last ? weights_.size() : kMostAtEdge) || last) return before;
    }
  }

  // The same as `gather`, by the weights in [low, high).
  bool gather_weights(float low, float high, size_t most) {
    best_.clear();
    float values[kMassBlock];
    int32_t ids[kMassBlock];
    for (int32_t begin = 0; begin < vocab_; begin += kMassBlock) {
      const int32_t found =
          ops_.within(weights_.data(), begin, std::min(kMassBlock, vocab_ - begin), low, high, values, ids);
      for (int32_t i = 0; i < found; ++i) best_.push_back({values[i], ids[i]});
      if (best_.size() > most) return false;
    }
    return true;
  }

  const SamplingOperators& ops_;
  const int32_t vocab_;
  float top_ = 0;
  std::vector<float> maxima_, masses_, weights_, ordered_;
  std::vector<Candidate> best_;
};

}  // namespace

int32_t first_best(const float* logits, int32_t count, const float* maxima, float top) {
  const int32_t blocks = (count + kMaximumBlock - 1) / kMaximumBlock;
  const auto block = static_cast<int32_t>(std::find(maxima, maxima + blocks, top) - maxima);
  const float* from = logits + std::min(block * kMaximumBlock, count);
  return static_cast<int32_t>(std::find(from, logits + count, top) - logits);
}

void sample(const Operators& operators, const float* logits, int64_t stride, int32_t vocab, const Draw* draws,
            int32_t count, int32_t* tokens, int threads) {
#pragma omp parallel num_threads(std::max(1, std::min(threads, count)))
  {
    RowSampler sampler(operators.sampling, vocab);
#pragma omp for schedule(dynamic)
    for (int32_t i = 0; i < count; ++i) tokens[i] = sampler.draw(logits + draws[i].row * stride, draws[i]);
  }
}

void log_probabilities(const Operators& operators, const float* logits, int64_t stride, int32_t vocab,
                       const int64_t* rows, const int32_t* tokens, int32_t count, int32_t best, float* chosen,
                       int32_t* ids, float* values, int threads) {
#pragma omp parallel num_threads(std::max(1, std::min(threads, count)))
  {
    RowSampler sampler(operators.sampling, vocab);
#pragma omp for schedule(dynamic)
    for (int32_t i = 0; i < count; ++i) {
      const float* row = logits + rows[i] * stride;
      const bool valid = sampler.look_at(row);
      const double sum = valid ? sampler.log_of_sum(row) : std::numeric_limits<double>::quiet_NaN();
      chosen[i] = static_cast<float>(row[tokens[i]] - sum);
      if (best <= 0) continue;
      const auto& candidates = sampler.best_of(row, best);
      for (int32_t j = 0; j < best; ++j) {
        ids[int64_t{i} * best + j] = candidates[static_cast<size_t>(j)].id;
        values[int64_t{i} * best + j] = static_cast<float>(candidates[static_cast<size_t>(j)].logit - sum);
      }
    }
  }
}

}  // namespace inferloom
