// The step of a decoder: the same bits for any number of threads, however a prompt is cut and whatever else is in the
// batch; and what divides its work. That the numbers are right is tested from Python, against models in torch.
#include <omp.h>

#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "../decoder.h"
#include "check.h"

namespace inferloom {
namespace {

constexpr int kPages = 24;

// What sets a model apart.
struct Shape {
  const char* name;
  int hidden = 64, inner = 200, heads = 4, kv_heads = 2, dim = 16, rotary = 16, window = 0;
  Layout layout = Layout::BF16;
  KvType kv_type = KvType::BF16;
  bool out_norms = false, parallel = false, whole_rows = false, learned = false, gated = true, capped = false;
};

class Model {
 public:
  explicit Model(const Shape& shape) : random_(7) {
    spec.vocab_size = 83;
    spec.hidden_size = shape.hidden;
    spec.intermediate_size = shape.inner;
    spec.heads = shape.heads;
    spec.kv_heads = shape.kv_heads;
    spec.head_dim = shape.dim;
    spec.norm_eps = 1e-5f;
    spec.attention_scale = 0.25f;
    spec.norm_whole_rows = shape.whole_rows;
    spec.parallel_residual = shape.parallel;
    spec.kv_type = shape.kv_type;
    if (shape.capped) {
      spec.attention_soft_cap = 3.0f, spec.logit_soft_cap = 2.0f;
      spec.residual_factor = 0.7f, spec.embedding_factor = 1.5f;
    }
    const int queries = shape.heads * shape.dim, keys = shape.kv_heads * shape.dim;
    weights.embedding = matrix(spec.vocab_size, shape.hidden, shape.layout);
    weights.head = weights.embedding;
    if (shape.learned) weights.positions = matrix(200, shape.hidden, Layout::F32);
    weights.norm = norm(shape.hidden);
    for (int i = 0; i < 2; ++i) {
      DecoderLayer layer;
      layer.input_norm = norm(shape.hidden);
      layer.mlp_norm = norm(shape.hidden);
      if (shape.out_norms) layer.attention_out_norm = norm(shape.hidden), layer.mlp_out_norm = norm(shape.hidden);
      layer.q = matrix(queries, shape.hidden, shape.layout);
      layer.k = matrix(keys, shape.hidden, shape.layout);
      layer.v = matrix(keys, shape.hidden, Layout::F32);
      layer.o = matrix(shape.hidden, queries, shape.layout);
      layer.gate = matrix(shape.inner, shape.hidden, shape.layout);
      if (shape.gated) layer.up = matrix(shape.inner, shape.hidden, shape.layout);
      layer.down = matrix(shape.hidden, shape.inner, shape.layout);
      if (shape.whole_rows) layer.q_norm = floats(queries, 1.0f), layer.k_norm = floats(keys, 1.0f);
      layer.window = i == 0 ? shape.window : 0;
      layer.rope = shape.learned ? -1 : 0;
      weights.layers.push_back(layer);
    }
    rope = floats(200 * shape.rotary, 0.0f);
    rotary = shape.rotary;
  }

  DecoderSpec spec;
  DecoderWeights weights;
  const float* rope;
  int rotary;

 private:
  float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_); }

  const float* floats(int count, float around) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = around + 0.3f * uniform();
    kept_.emplace_back(64 + values.size() * sizeof(float));
    uint8_t* place = kept_.back().data() + (64 - reinterpret_cast<uintptr_t>(kept_.back().data()) % 64) % 64;
    std::memcpy(place, values.data(), values.size() * sizeof(float));
    return reinterpret_cast<const float*>(place);
  }

  Norm norm(int cols) { return {true, floats(cols, 1.0f), nullptr}; }

  Linear matrix(int rows, int cols, Layout layout) {
    const Linear shape{layout, rows, cols, nullptr, nullptr};
    if (layout == Layout::F32) return {layout, rows, cols, floats(rows * cols, 0.0f), floats(rows, 0.0f)};
    const size_t bytes = block_bytes(shape) * static_cast<size_t>(shape.blocks());
    auto* data = reinterpret_cast<uint8_t*>(const_cast<float*>(floats(static_cast<int>(bytes / 4 + 1), 0.0f)));
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(random_());
    if (layout == Layout::BF16) {
      for (size_t i = 1; i < bytes; i += 2) data[i] = static_cast<uint8_t>((data[i] & 0x80) | 0x3d);  // ± 0.03 … 0.12
    } else if (layout == Layout::Q4Z_32) {  // scales of 0.004 … 0.008
      for (size_t block = 0; block < bytes; block += 576) {
        for (size_t i = 513; i < 576; i += 2) data[block + i] = 0x1c;
      }
    } else {  // Q4_32: scales of 0.004 … 0.008, minima of −0.03 … −0.06
      for (size_t block = 0; block < bytes; block += 320) {
        for (size_t i = 257; i < 320; i += 2) data[block + i] = i < 288 ? 0x1c : 0xa8;
      }
    }
    return {layout, rows, cols, data, nullptr};
  }

  std::mt19937 random_;
  std::vector<std::vector<uint8_t>> kept_;
};

// A model with a pool, fed by hand. Sequence i has the pages i, i + 4, i + 8 …
class Run {
 public:
  Run(const Operators& operators, const Model& model, int threads)
      : model_(model), decoder_(operators, model.spec, model.weights, threads), done_(4, 0) {
    pool_.assign(decoder_.kv_bytes_per_page() * kPages + 64, 0xff);  // NaN wherever a page was not written
    decoder_.set_kv(pool_.data() + (64 - reinterpret_cast<uintptr_t>(pool_.data()) % 64) % 64, kPages);
    decoder_.set_rope(0, model.rope, 200, model.rotary);
  }

  struct Part {
    int sequence, rows;
  };

  // The logits of all rows.
  std::vector<float> step(const std::vector<Part>& parts) {
    StepBatch batch;
    batch.starts = batch.page_starts = {0};
    for (const Part& part : parts) {
      int& done = done_[static_cast<size_t>(part.sequence)];
      for (int i = 0; i < part.rows; ++i, ++done) {
        batch.token_ids.push_back((done * 31 + part.sequence * 7) % model_.spec.vocab_size);
      }
      batch.starts.push_back(batch.rows());
      batch.context_lens.push_back(done);
      for (int page = 0; page * kPageSize < done; ++page) batch.page_tables.push_back(part.sequence + 4 * page);
      batch.page_starts.push_back(static_cast<int32_t>(batch.page_tables.size()));
    }
    for (int i = 0; i < batch.rows(); ++i) batch.logit_rows.push_back(i);
    std::vector<float> logits(static_cast<size_t>(batch.rows() * model_.spec.vocab_size), -77.0f);
    decoder_.step(batch, logits.data());
    return logits;
  }

  // The logits of `rows` rows of sequence 0 in such steps, beside others where `company`.
  std::vector<float> prompt(const std::vector<int>& steps, bool company) {
    std::vector<float> all;
    const auto vocab = static_cast<size_t>(model_.spec.vocab_size);
    for (int rows : steps) {
      std::vector<Part> parts{{0, rows}};
      if (company) parts = {{2, 1}, {0, rows}, {1, 3}, {3, 1}};
      const std::vector<float> logits = step(parts);
      const auto begin = logits.begin() + static_cast<long>(company ? vocab : 0);
      all.insert(all.end(), begin, begin + static_cast<long>(static_cast<size_t>(rows) * vocab));
    }
    return all;
  }

  Decoder& decoder() { return decoder_; }

 private:
  const Model& model_;
  Decoder decoder_;
  std::vector<int> done_;
  std::vector<uint8_t> pool_;
};

bool finite(const std::vector<float>& values) {
  for (float value : values) {
    if (!(value - value == 0.0f) || value == -77.0f) return false;
  }
  return true;
}

void test_same_bits(const Operators& operators) {
  Shape sandwich{"sandwich norms, soft caps, window"}, parallel{"parallel residual"}, whole{"norms over all heads"};
  Shape learned{"learned positions, no gate"}, nibbles{"Q4_32"}, zeros{"Q4Z_32"}, partial{"part of a head turns, odd sizes"};
  Shape bytes{"int8 pages"}, odd_bytes{"int8 pages, window, soft caps, norms over all heads"};
  sandwich.out_norms = sandwich.capped = true, sandwich.window = 5;
  parallel.parallel = true;
  whole.whole_rows = whole.out_norms = true;
  learned.learned = true, learned.gated = false;
  nibbles.layout = Layout::Q4_32, nibbles.inner = 256;
  zeros.layout = Layout::Q4Z_32, zeros.inner = 256;
  partial.rotary = 6, partial.hidden = 72, partial.inner = 100, partial.dim = 48;
  bytes.kv_type = odd_bytes.kv_type = KvType::INT8;
  odd_bytes.whole_rows = odd_bytes.capped = true, odd_bytes.window = 37, odd_bytes.dim = 48;
  for (const Shape& shape : {Shape{"plain"}, sandwich, parallel, whole, learned, nibbles, zeros, partial, bytes, odd_bytes}) {
    const Model model(shape);
    const std::vector<float> expected = Run(operators, model, 1).prompt({70}, false);
    CHECK(finite(expected), "%s: logits are not numbers, or were not written", shape.name);
    for (int threads : {1, 3}) {
      for (const std::vector<int>& steps : {std::vector<int>{70}, {1, 69}, {33, 8, 8, 1, 20}}) {
        for (bool company : {false, true}) {
          const bool same = Run(operators, model, threads).prompt(steps, company) == expected;
          CHECK(same, "%s: other bits with %d threads, %zu steps, %s", shape.name, threads, steps.size(),
                company ? "in company" : "alone");
        }
      }
    }
  }
}

void test_refusals(const Operators& operators) {
  const Model model(Shape{"plain"});
  Run run(operators, model, 2);
  const auto refused = [&](StepBatch batch) {
    std::vector<float> logits(static_cast<size_t>(model.spec.vocab_size));
    try {
      run.decoder().step(batch, logits.data());
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  StepBatch good;
  good.token_ids = {5}, good.starts = good.page_starts = {0, 1}, good.context_lens = {1};
  good.page_tables = {3}, good.logit_rows = {0};
  CHECK(!refused(good), "a good batch is refused");
  StepBatch bad = good;
  bad.token_ids = {83};
  CHECK(refused(bad), "a token past the vocabulary is taken");
  bad = good, bad.page_tables = {kPages};
  CHECK(refused(bad), "a page past the pool is taken");
  bad = good, bad.context_lens = {33};
  CHECK(refused(bad), "a context longer than its pages is taken");
  bad = good, bad.context_lens = {201}, bad.page_tables = {0, 1, 2, 3, 4, 5, 6}, bad.page_starts = {0, 7};
  CHECK(refused(bad), "a context longer than the rope table is taken");
}

// Every unit is taken once, by whatever thread, in stages of all sizes.
void test_sharing(const Operators&) {
  for (int threads : {1, 2, 5}) {
    Team team(threads);
    for (int region = 0; region < 3; ++region) {
      std::vector<std::vector<int>> taken;
      for (int units : {0, 1, 4, 5, 1000, 3}) taken.emplace_back(static_cast<size_t>(units), 0);
      team.prepare();
#pragma omp parallel num_threads(threads)
      {
        Team::Member member(team, omp_get_thread_num(), omp_get_num_threads());
        for (size_t stage = 0; stage < taken.size(); ++stage) {
          if (stage == 2) member.wait();  // a stage without shared work
          member.share(static_cast<int>(taken[stage].size()), 3, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) ++taken[stage][static_cast<size_t>(i)];
          });
          member.wait();
        }
      }
      for (const std::vector<int>& stage : taken) {
        for (int count : stage) {
          CHECK(count == 1, "a unit of %zu was taken %d times by %d threads", stage.size(), count, threads);
        }
      }
    }
  }
}

void test(const Operators& operators) {
  test_sharing(operators);
  test_same_bits(operators);
  test_refusals(operators);
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(&inferloom::test); }
