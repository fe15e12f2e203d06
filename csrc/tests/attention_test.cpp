// Attention over pages, with the heads operator that fills them, against plain double precision.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../operators.h"
#include "check.h"

namespace inferloom {
namespace {

double rounded_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&x, &u, 4);
  return x;
}

struct Case {
  int heads = 4, kv_heads = 2, dim = 64;
  std::vector<int> contexts;  // of each sequence
  std::vector<int> rows;      // its rows of this step
  KvType type = KvType::BF16;
  int window = 0;
  float soft_cap = 0;
  bool sinks = false, masks = false;
};

// A case with its pages filled through `heads`, as a step after another would.
class Filled {
 public:
  Filled(const Operators& operators, const Case& c, unsigned seed) : c_(c), ops_(operators), random_(seed) {
    const size_t page_bytes = kv_page_bytes(c.type, c.kv_heads, c.dim);
    int pages = 0;
    for (int context : c.contexts) pages += (context + kPageSize - 1) / kPageSize;
    // What a page held before must not matter: all ones is a NaN in every format.
    memory_.assign(page_bytes * static_cast<size_t>(pages) + 64, 0xff);
    uint8_t* base = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64);
    pool_ = {base, static_cast<int64_t>(page_bytes), c.type, c.kv_heads, c.dim};
    std::vector<int> order(static_cast<size_t>(pages));
    for (int i = 0; i < pages; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), random_);
    width_ = (c.heads + 2 * c.kv_heads) * c.dim;
    tables_.resize(c.contexts.size());
    size_t next = 0;
    int first = 0;
    for (size_t s = 0; s < c.contexts.size(); ++s) {
      for (int p = 0; p * kPageSize < c.contexts[s]; ++p) tables_[s].push_back(order[next++]);
      sequences_.push_back({first, c.rows[s], c.contexts[s], tables_[s].data()});
      first += c.rows[s];
    }
    for (int h = 0; h < c.heads; ++h) sinks_.push_back(uniform() * 2);
    fill();
    if (c.masks) make_masks();
    spec_ = {c.heads, c.kv_heads, c.dim, 1.0f / std::sqrt(static_cast<float>(c.dim)), c.soft_cap, c.window,
             c.sinks ? sinks_.data() : nullptr, c.masks ? runs_.data() : nullptr, c.masks ? starts_.data() : nullptr};
  }

  // The result, computed in units of at most `rows` rows; `split`: every split of the keys on its own, then merged.
  std::vector<float> attend(int rows, bool split) const {
    const int out_stride = c_.heads * c_.dim + 5;
    std::vector<float> out(static_cast<size_t>(total_rows()) * out_stride, -77.0f), scratch(attention_scratch(spec_));
    for (const SequenceView& sequence : sequences_)
      for (int row = 0; row < sequence.rows; row += rows)
        for (int head = 0; head < c_.kv_heads; ++head) {
          AttentionUnit unit{&sequence, row, std::min(rows, sequence.rows - row), head, 0, sequence.context, nullptr};
          if (!split) {
            ops_.attend(spec_, pool_, unit, q_.data(), width_, out.data(), out_stride, scratch.data());
            continue;
          }
          const int splits = (sequence.context + kKeySplit - 1) / kKeySplit;
          const size_t size = static_cast<size_t>(unit.rows) * (c_.heads / c_.kv_heads) * (c_.dim + 2);
          std::vector<float> partials(size * static_cast<size_t>(splits));
          for (int s = 0; s < splits; ++s) {
            unit.key_begin = s * kKeySplit;
            unit.key_end = std::min(sequence.context, unit.key_begin + kKeySplit);
            unit.partial = partials.data() + size * static_cast<size_t>(s);
            ops_.attend(spec_, pool_, unit, q_.data(), width_, nullptr, 0, scratch.data());
          }
          ops_.merge(spec_, unit, partials.data(), splits, out.data(), out_stride);
        }
    std::vector<float> compact;
    for (int row = 0; row < total_rows(); ++row)
      for (int i = 0; i < out_stride; ++i) {
        const float x = out[static_cast<size_t>(row) * out_stride + i];
        if (i < c_.heads * c_.dim) compact.push_back(x);
        else CHECK(x == -77.0f, "wrote past the end of row %d", row);
      }
    return compact;
  }

  std::vector<double> reference() const {
    std::vector<double> out;
    const int group = c_.heads / c_.kv_heads;
    for (size_t s = 0; s < sequences_.size(); ++s)
      for (int row = 0; row < sequences_[s].rows; ++row) {
        const int global = sequences_[s].first_row + row, position = sequences_[s].context - sequences_[s].rows + row;
        const std::vector<bool> seen = seen_by(global, position);
        for (int h = 0; h < c_.heads; ++h) {
          const float* q = q_.data() + static_cast<size_t>(global) * width_ + h * c_.dim;
          std::vector<double> scores(static_cast<size_t>(position) + 1);
          double top = c_.sinks ? sinks_[static_cast<size_t>(h)] : -1e300;
          for (int p = 0; p <= position; ++p) {
            if (!seen[static_cast<size_t>(p)]) continue;
            double dot = 0;
            for (int i = 0; i < c_.dim; ++i) dot += rounded_bf16(q[i]) * keys_[s][key_index(p, h / group, i)];
            dot *= spec_.scale;
            if (c_.soft_cap > 0) dot = c_.soft_cap * std::tanh(dot / c_.soft_cap);
            scores[static_cast<size_t>(p)] = dot;
            top = std::max(top, dot);
          }
          double weight = c_.sinks ? std::exp(sinks_[static_cast<size_t>(h)] - top) : 0;
          std::vector<double> sum(static_cast<size_t>(c_.dim));
          for (int p = 0; p <= position; ++p) {
            if (!seen[static_cast<size_t>(p)]) continue;
            const double e = std::exp(scores[static_cast<size_t>(p)] - top);
            weight += e;
            for (int i = 0; i < c_.dim; ++i) sum[static_cast<size_t>(i)] += e * values_[s][key_index(p, h / group, i)];
          }
          for (double x : sum) out.push_back(weight > 0 ? x / weight : 0);
        }
      }
    return out;
  }

 private:
  int total_rows() const { return sequences_.back().first_row + sequences_.back().rows; }
  float uniform() { return std::uniform_real_distribution<float>(-1, 1)(random_); }
  size_t key_index(int position, int head, int i) const {
    return (static_cast<size_t>(position) * c_.kv_heads + head) * c_.dim + i;
  }

  void fill() {
    q_.assign(static_cast<size_t>(total_rows()) * width_, 0);
    const HeadJob job{nullptr, width_, nullptr, nullptr, 1e-6f, nullptr, 0, c_.heads, c_.kv_heads, c_.dim};
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int context = sequences_[s].context;
      std::vector<float> qkv(static_cast<size_t>(context) * width_);
      for (float& x : qkv) x = uniform();
      std::vector<int32_t> positions, pages;
      for (int p = 0; p < context; ++p) {
        positions.push_back(p);
        pages.push_back(tables_[s][static_cast<size_t>(p / kPageSize)]);
      }
      HeadJob mine = job;
      mine.qkv = qkv.data();
      ops_.heads(mine, pool_, positions.data(), pages.data(), 0, context);
      keys_.emplace_back();
      values_.emplace_back();
      for (int p = 0; p < context; ++p) {
        const float* row = qkv.data() + static_cast<size_t>(p) * width_;
        for (int head = 0; head < c_.kv_heads; ++head) {
          append(keys_[s], row + (c_.heads + head) * c_.dim);
          append(values_[s], row + (c_.heads + c_.kv_heads + head) * c_.dim);
        }
        const int local = p - (context - sequences_[s].rows);
        if (local < 0) continue;
        std::copy_n(row, width_, q_.begin() + static_cast<ptrdiff_t>(sequences_[s].first_row + local) * width_);
        for (int i = 0; i < c_.heads * c_.dim; ++i)
          q_[static_cast<size_t>(sequences_[s].first_row + local) * width_ + i] *= 3;
      }
    }
  }

  // What a page gives back of a key or a value.
  void append(std::vector<double>& stored, const float* x) const {
    float top = 0;
    for (int i = 0; i < c_.dim; ++i) top = std::max(top, std::fabs(x[i]));
    for (int i = 0; i < c_.dim; ++i)
      stored.push_back(c_.type == KvType::BF16 ? rounded_bf16(x[i])
                                               : std::nearbyint(x[i] * (127.0f / top)) * (top / 127.0f));
  }

  void make_masks() {
    starts_.push_back(0);
    for (int row = 0; row < total_rows(); ++row) {
      const int runs = row % 7 == 3 ? 0 : static_cast<int>(random_() % 9);
      for (int i = 0; i < runs; ++i) runs_.push_back(static_cast<int32_t>(random_() % 60));
      starts_.push_back(static_cast<int32_t>(runs_.size()));
    }
    runs_.push_back(0);  // data() of an empty vector may be null
  }

  std::vector<bool> seen_by(int row, int position) const {
    std::vector<bool> seen(static_cast<size_t>(position) + 1, !c_.masks);
    if (c_.masks) {
      size_t at = 0;
      for (int run = starts_[static_cast<size_t>(row)]; run < starts_[static_cast<size_t>(row) + 1]; ++run)
        for (int i = 0; i < runs_[static_cast<size_t>(run)]; ++i, ++at)
          if (at < seen.size()) seen[at] = (run - starts_[static_cast<size_t>(row)]) % 2 == 1;
    }
    if (c_.window)
      for (int p = 0; p <= position - c_.window; ++p) seen[static_cast<size_t>(p)] = false;
    return seen;
  }

  const Case c_;
  const Operators& ops_;
  std::mt19937 random_;
  std::vector<uint8_t> memory_;
  KvPool pool_{};
  int width_ = 0;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<SequenceView> sequences_;
  std::vector<float> q_, sinks_;
  std::vector<std::vector<double>> keys_, values_;
  std::vector<int32_t> runs_, starts_;
  AttentionSpec spec_{};
};

void run(const Operators& operators, const Case& c, const char* what) {
  const Filled filled(operators, c, 7);
  const std::vector<float> whole = filled.attend(kAttentionRows, false);
  const std::vector<double> wanted = filled.reference();
  double worst = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::fabs(whole[i] - wanted[i]);
    worst = error <= worst ? worst : error;  // a NaN stays
    if (!(error == error)) worst = std::numeric_limits<double>::infinity();
  }
  // Probabilities are rounded to bfloat16 (2^-9 of each), values are at most 1.
  CHECK(worst < 4e-3, "%s: %s, head_dim %d: off by %g", operators.name, what, c.dim, worst);
  for (int rows : {1, 3})
    for (bool split : {false, true}) {
      const std::vector<float> other = filled.attend(rows, split);
      CHECK(std::memcmp(other.data(), whole.data(), whole.size() * 4) == 0,
            "%s: %s, head_dim %d: units of %d rows, splits %d give other bits", operators.name, what, c.dim, rows,
            split);
    }
}

void test(const Operators& operators) {
  const std::vector<int> contexts{1, 2, 31, 32, 33, 127, 128, 129, 300}, rows{1, 2, 5, 1, 33, 9, 1, 129, 17};
  for (KvType type : {KvType::BF16, KvType::INT8}) {
    Case base;
    base.contexts = contexts, base.rows = rows, base.type = type;
    for (int dim : {16, 48, 64, 80, 96, 128, 256}) {
      Case c = base;
      c.dim = dim;
      run(operators, c, "two heads a group");
    }
    for (int group : {1, 3, 7}) {
      Case c = base;
      c.heads = 2 * group;
      run(operators, c, "groups of other sizes");
    }
    Case c = base;
    c.window = 40;
    run(operators, c, "a window");
    c = base;
    c.soft_cap = 1.5f;
    run(operators, c, "a soft cap");
    c = base;
    c.sinks = true;
    run(operators, c, "sinks");
    c = base;
    c.masks = true;
    run(operators, c, "masks");
    c.sinks = true, c.window = 7, c.soft_cap = 2;
    run(operators, c, "everything at once");
    c = base;
    c.contexts = {1023, 1024, 1025, 2100, 3333}, c.rows = {1, 2, 3, 4, 1};
    run(operators, c, "several splits");
    c.window = 1000, c.sinks = true;
    run(operators, c, "several splits with a window");
  }
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(inferloom::test); }
