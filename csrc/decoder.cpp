#include "decoder.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "decoder_step.h"

namespace inferloom {

namespace {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

void require_linear(const Linear& w, int32_t rows, int32_t cols, const char* name, bool screens = false) {
  const auto size = [](int32_t n, int32_t k) { return std::to_string(n) + " x " + std::to_string(k); };
  const auto refuse = [&](const std::string& what) { throw std::invalid_argument(std::string(name) + what); };
  if (w.rows != rows || w.cols != cols) refuse(" is " + size(w.rows, w.cols) + ", not " + size(rows, cols));
  if (!w.data) refuse(" has no data");
  if (w.quantised() && reinterpret_cast<uintptr_t>(w.data) % 64) refuse(" does not begin at a multiple of 64 bytes");
  if ((w.layout == Layout::Q4_DITHERED) != screens) refuse(screens ? " is no screen" : " is a screen");
}

void require_layer(const DecoderSpec& spec, const DecoderLayer& layer) {
  const int32_t hidden = spec.hidden_size, inner = spec.intermediate_size;
  const int32_t queries = spec.heads * spec.head_dim, keys = spec.kv_heads * spec.head_dim;
  require_linear(layer.q, queries, hidden, "q");
  require_linear(layer.k, keys, hidden, "k");
  require_linear(layer.v, keys, hidden, "v");
  require_linear(layer.o, hidden, queries, "o");
  require_linear(layer.gate, inner, hidden, "gate");
  if (layer.up.present()) require_linear(layer.up, inner, hidden, "up");
  require_linear(layer.down, hidden, inner, "down");
  require(layer.up.present() || spec.activation != Activation::NONE, "an MLP without gate needs an activation");
  require(!spec.parallel_residual || !layer.attention_out_norm.present,
          "a parallel residual has no norm after the attention");
  require((layer.q_norm == nullptr) == (layer.k_norm == nullptr), "queries and keys are normalised both or neither");
}

// The forms in which the matrices that read one buffer want it, over all layers.
template <class Forms>
uint32_t all_forms(const DecoderWeights& weights, Forms&& of) {
  uint32_t forms = 0;
  for (const DecoderLayer& layer : weights.layers) forms |= of(layer);
  return forms;
}

uint32_t hidden_forms(const DecoderWeights& weights) {
  return all_forms(weights, [](const DecoderLayer& layer) { return qkv_forms(layer) | mlp_forms(layer); }) |
         form_of(weights.head.layout);
}

uint32_t mixed_forms(const DecoderWeights& weights) {
  return all_forms(weights, [](const DecoderLayer& layer) { return uint32_t{form_of(layer.o.layout)}; });
}

uint32_t inner_forms(const DecoderWeights& weights) {
  return all_forms(weights, [](const DecoderLayer& layer) { return uint32_t{form_of(layer.down.layout)}; });
}

}  // namespace

Decoder::Decoder(const Operators& operators, const DecoderSpec& spec, DecoderWeights weights, int threads)
    : spec_(spec),
      weights_(std::move(weights)),
      operators_(operators),
      team_(std::max(threads, 1)),
      hidden_(spec.hidden_size, hidden_forms(weights_), spec.int8_group),
      mixed_(spec.heads * spec.head_dim, mixed_forms(weights_), spec.int8_group),
      inner_(spec.intermediate_size, inner_forms(weights_), spec.int8_group) {
  require(threads >= 1, "a decoder needs at least one thread");
  require(spec.vocab_size > 0 && spec.hidden_size > 0 && spec.intermediate_size > 0, "sizes must be positive");
  require(spec.kv_heads > 0 && spec.heads > 0 && spec.heads % spec.kv_heads == 0,
          "heads must be a multiple of kv_heads");
  require(spec.head_dim > 0 && spec.head_dim % 16 == 0, "head_dim must be a multiple of 16");
  require(spec.int8_group == 32 || spec.int8_group == 64 || spec.int8_group == 128, "int8_group must be 32, 64 or 128");
  require(!weights_.layers.empty(), "a decoder needs layers");
  require_linear(weights_.embedding, spec.vocab_size, spec.hidden_size, "embedding");
  require_linear(weights_.head, spec.vocab_size, spec.hidden_size, "head");
  if (weights_.screen.present()) {
    require_linear(weights_.screen, spec.vocab_size, spec.hidden_size, "screen", true);
    require(weights_.head.layout == Layout::Q8_32, "a screen belongs to a head in Q8_32");
  }
  if (weights_.positions.present()) {
    require_linear(weights_.positions, weights_.positions.rows, spec.hidden_size, "positions");
  }
  for (const DecoderLayer& layer : weights_.layers) {
    require_layer(spec, layer);
    const auto found = std::find(windows_.begin(), windows_.end(), layer.window);
    plan_of_.push_back(static_cast<int32_t>(found - windows_.begin()));
    if (found == windows_.end()) windows_.push_back(layer.window);
  }
  plan_of_.back() = static_cast<int32_t>(windows_.size());  // the last layer computes the wanted rows alone
  plans_.resize(windows_.size() + 1);
  const int32_t queries = spec.heads * spec.head_dim;
  peaks_.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    private_.push_back({ActivationBuffer(spec.hidden_size, hidden_forms(weights_), spec.int8_group),
                        ActivationBuffer(queries, mixed_forms(weights_), spec.int8_group), Buffer(), {}, {}});
    private_.back().maxima.resize(static_cast<size_t>((spec.vocab_size + kMaximumBlock - 1) / kMaximumBlock));
  }
  profile.threads.resize(static_cast<size_t>(threads));
}

size_t Decoder::kv_bytes_per_page() const {
  return weights_.layers.size() * kv_page_bytes(spec_.kv_type, spec_.kv_heads, spec_.head_dim);
}

size_t Decoder::scratch_bytes() const {
  size_t bytes = 0;
  for (const Buffer* buffer : {&stream_, &wanted_stream_, &qkv_, &mixed_rows_, &added_, &partials_}) {
    bytes += buffer->bytes();
  }
  for (const ActivationBuffer* buffer : {&hidden_, &mixed_, &inner_}) bytes += buffer->bytes();
  for (const Private& own : private_) bytes += own.hidden.bytes() + own.mixed.bytes() + own.scratch.bytes();
  return bytes;
}

void Decoder::set_kv(uint8_t* pool, int32_t pages) {
  require(reinterpret_cast<uintptr_t>(pool) % 64 == 0, "the KV pool must begin at a multiple of 64 bytes");
  pool_ = pool;
  pages_ = pages;
}

void Decoder::set_rope(int32_t table, const float* cos_sin, int32_t positions, int32_t rotary) {
  require(table >= 0 && rotary > 0 && rotary % 2 == 0 && rotary <= spec_.head_dim,
          "a rope turns an even part of a head");
  if (static_cast<size_t>(table) >= ropes_.size()) ropes_.resize(static_cast<size_t>(table) + 1);
  ropes_[static_cast<size_t>(table)] = {cos_sin, positions, rotary};
}

void Decoder::check(const StepBatch& batch) const {
  const int32_t rows = batch.rows(), sequences = batch.sequences();
  require(pool_ != nullptr, "set_kv comes before the first step");
  const auto ends = static_cast<size_t>(sequences) + 1;
  require(batch.starts.size() == ends && batch.page_starts.size() == ends,
          "starts and context_lens do not fit together");
  require(batch.starts.front() == 0 && batch.starts.back() == rows, "starts do not cover the rows");
  int32_t longest = 0;
  for (int32_t i = 0; i < sequences; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t count = batch.starts[at + 1] - batch.starts[at], context = batch.context_lens[at];
    require(count > 0 && context >= count, "a sequence has no rows, or more rows than context");
    const int64_t room = (batch.page_starts[at + 1] - batch.page_starts[at]) * int64_t{kPageSize};
    require(room >= context, "a page table is too short for its context");
    longest = std::max(longest, context);
  }
  for (const int32_t id : batch.token_ids) {
    require(id >= 0 && id < spec_.vocab_size, "a token id is outside of the vocabulary");
  }
  for (const int32_t page : batch.page_tables) require(page >= 0 && page < pages_, "a page is outside of the pool");
  for (const int32_t row : batch.logit_rows) require(row >= 0 && row < rows, "a logit row is outside of the batch");
  require(!weights_.positions.present() || longest <= weights_.positions.rows,
          "a context is longer than the table of positions");
  for (const DecoderLayer& layer : weights_.layers) {
    if (layer.rope < 0) continue;
    const auto table = static_cast<size_t>(layer.rope);
    require(table < ropes_.size() && longest <= ropes_[table].positions,
            "a context is longer than its rope table");
  }
}

void Decoder::plan(const StepBatch& batch) {
  sequences_.clear();
  positions_.clear();
  row_pages_.clear();
  head_starts_.clear();
  for (int32_t i = 0; i < batch.sequences(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t first = batch.starts[at], rows = batch.starts[at + 1] - first, context = batch.context_lens[at];
    const int32_t* pages = batch.page_tables.data() + batch.page_starts[at];
    sequences_.push_back({first, rows, context, pages});
    for (int32_t position = context - rows; position < context; ++position) {
      // Sixteen positions share the cache lines of a block of keys.
      const bool begins = position == context - rows || position % 16 == 0;
      if (begins) head_starts_.push_back(static_cast<int32_t>(positions_.size()));
      positions_.push_back(position);
      row_pages_.push_back(pages[position / kPageSize]);
    }
  }
  head_starts_.push_back(batch.rows());
  is_wanted_.assign(static_cast<size_t>(batch.rows()), 0);
  all_wanted_ = batch.wanted() == batch.rows();
  for (int32_t i = 0; i < batch.wanted(); ++i) {
    const int32_t row = batch.logit_rows[static_cast<size_t>(i)];
    is_wanted_[static_cast<size_t>(row)] = 1;
    all_wanted_ = all_wanted_ && row == i;
  }
  for (size_t i = 0; i < windows_.size(); ++i) plans_[i].make(sequences_, spec_, windows_[i], nullptr, team_.most());
  plans_.back().make(sequences_, spec_, weights_.layers.back().window, is_wanted_.data(), team_.most());
}

bool Decoder::may_screen(int32_t wanted) const {
  const bool plain = !weights_.head.bias && spec_.logit_soft_cap == 0.0f && spec_.logit_factor > 0.0f;
  const bool few = wanted > 0 && wanted <= kScreenedRows;
  return few && plain && (weights_.screen.present() || weights_.head.layout == Layout::Q8_HALVES);
}

void Decoder::reserve(const StepBatch& batch) {
  const auto rows = static_cast<size_t>(batch.rows()), wanted = static_cast<size_t>(batch.wanted());
  const auto hidden = static_cast<size_t>(spec_.hidden_size);
  const auto queries = static_cast<size_t>(spec_.heads * spec_.head_dim);
  const auto keys = static_cast<size_t>(spec_.kv_heads * spec_.head_dim);
  stream_.reserve_of<float>(rows * hidden);
  wanted_stream_.reserve_of<float>(wanted * hidden);
  added_.reserve_of<float>(std::max(rows, wanted) * hidden);
  qkv_.reserve_of<float>(rows * (queries + 2 * keys));
  mixed_rows_.reserve_of<float>(rows * queries);
  // A row may be wanted more than once.
  const int32_t most = std::max(batch.rows(), batch.wanted());
  hidden_.reserve(most);
  mixed_.reserve(most);
  inner_.reserve(most);
  for (const AttentionPlan& plan : plans_) partials_.reserve_of<float>(static_cast<size_t>(plan.partial_floats));
  const AttentionSpec attention{spec_.heads, spec_.kv_heads, spec_.head_dim, 1.0f, 0.0f, 0, nullptr, nullptr, nullptr};
  const size_t scratch = attention_scratch(attention);
  for (Private& thread : private_) {
    thread.hidden.reserve(kFewRows);
    thread.mixed.reserve(kFewRows);
    thread.scratch.reserve_of<float>(scratch);
  }
}

void Decoder::choose(int32_t* best) const {
  for (size_t row = 0; row < private_.front().best.size(); ++row) {
    Best all;
    for (const Private& thread : private_) all.see(thread.best[row].value, thread.best[row].id);
    best[row] = std::isfinite(all.value) ? all.id : -1;
  }
}

void Decoder::step(const StepBatch& batch, float* logits, int32_t* best) {
  if (batch.rows() == 0) return;
  check(batch);
  plan(batch);
  reserve(batch);
  best_only_ = best != nullptr;
  screened_ = best_only_ && may_screen(batch.wanted()) && screening_.pays();
  computed_ = 0;
  for (auto& peaks : peaks_) peaks.fill({-INFINITY, 0});
  for (Private& thread : private_) thread.best.assign(best_only_ ? static_cast<size_t>(batch.wanted()) : 0, Best{});
  team_.prepare();
  if (profile.enabled) ++profile.steps;
#pragma omp parallel num_threads(team_.most())
  {
    // Fewer threads than asked for may come: inside another region, or where OMP_DYNAMIC or OMP_THREAD_LIMIT say so.
    StepWorker(*this, batch, logits, Team::Member(team_, omp_get_thread_num(), omp_get_num_threads())).run();
  }
  if (screened_) screening_.observe(computed_, weights_.head.blocks());
  if (best_only_ && batch.wanted() > 0) choose(best);
}

}  // namespace inferloom
