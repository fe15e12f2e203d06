// A whole step of a decoder over paged KV: one ragged batch of decodes and prefill chunks in, the logits of the asked
// rows out.
//
// The layer that a `DecoderSpec` describes is the one of `inferloom/models/spec.py`; what is not there changes nothing.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffers.h"
#include "linear.h"
#include "operators.h"
#include "profile.h"
#include "team.h"

namespace inferloom {

struct DecoderSpec {
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  float norm_eps = 0;
  NormKind norm_kind = NormKind::RMS;
  Activation activation = Activation::SILU;
  float attention_scale = 0;
  float attention_soft_cap = 0;    // 0: none
  float embedding_factor = 1;
  float residual_factor = 1;       // of what attention and MLP add to the stream
  float logit_factor = 1;
  float logit_soft_cap = 0;        // 0: none
  bool norm_whole_rows = false;    // queries and keys are normalised over all heads together, not head by head
  bool parallel_residual = false;  // the MLP reads the stream as the attention found it
  int32_t int8_group = 32;         // columns that share a scale in int8 activations: 32, 64 or 128
  KvType kv_type = KvType::BF16;   // of keys and values in their pages
};

struct Norm {
  bool present = false;
  const float* weight = nullptr;  // null: ones
  const float* bias = nullptr;
};

struct DecoderLayer {
  Norm input_norm, attention_out_norm, mlp_norm, mlp_out_norm;
  Linear q, k, v, o;
  Linear gate, up, down;           // not gated: only `gate`, which the activation is applied to
  const float* q_norm = nullptr;   // [head_dim], or [heads · head_dim] with norm_whole_rows
  const float* k_norm = nullptr;
  const float* sinks = nullptr;    // [heads]
  int32_t window = 0;              // tokens; 0: none
  int32_t rope = -1;               // which table of `set_rope`; -1: positions do not turn
};

struct DecoderWeights {
  Linear embedding;
  Linear positions;  // learned ones, added to the embedding; absent: none
  std::vector<DecoderLayer> layers;
  Norm norm;
  Linear head;
  Linear screen;  // of a head in Q8_32; absent: none, or the head (Q8_HALVES) has one in itself
};

// As `RaggedBatch` of inferloom/models/batch.py.
struct StepBatch {
  std::vector<int32_t> token_ids;     // [T]
  std::vector<int32_t> starts;        // [B + 1]
  std::vector<int32_t> context_lens;  // [B]
  std::vector<int32_t> page_starts;   // [B + 1], into page_tables
  std::vector<int32_t> page_tables;
  std::vector<int32_t> logit_rows;

  int32_t rows() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t sequences() const { return static_cast<int32_t>(context_lens.size()); }
  int32_t wanted() const { return static_cast<int32_t>(logit_rows.size()); }
};

// A piece of a layer's attention: a tile of query rows with one key-value head.
struct AttentionShare {
  AttentionUnit unit;  // `partial` is null
  int64_t partial;     // one split of several: where its partial result goes, in floats; -1: all there is
};

// The splits of a tile, whose partial results lie one after the other.
struct AttentionJoin {
  AttentionUnit unit;
  int32_t splits;
  int64_t partials;
};

// How the attention of a step is divided; the same for all layers with the same window.
struct AttentionPlan {
  std::vector<AttentionShare> shares;
  std::vector<AttentionJoin> joins;
  int64_t partial_floats = 0;
  // Every sequence has one tile, whose shares see all keys: such a share can make the queries, keys and values as well.
  bool by_head = false;

  // `wanted`: for each row whether its result matters, or null: all do.
  void make(const std::vector<SequenceView>& sequences, const DecoderSpec& spec, int32_t window, const uint8_t* wanted,
            int threads);
};

// Whether bounds of all logits, before the exact ones of those that may be the greatest, are the shorter way to the greatest: not where
// several steps leave much undecided. It is tried again after a while, and after longer ones if that was in vain.
class Screening {
 public:
  bool pays() { return left_ == 0 || --left_ == 0; }
  // So many of the output matrix's blocks had to be computed.
  void observe(int computed, int blocks) {
    const float share = static_cast<float>(computed) / static_cast<float>(blocks);
    share_ = share_ < 0 ? share : 0.75f * share_ + 0.25f * share;
    if (share_ < kMostComputed) {
      pause_ = 0;
      return;
    }
    left_ = pause_ = std::min(std::max(2 * pause_, 16), 1024);
    share_ = -1;
  }

 private:
  static constexpr float kMostComputed = 1.0f / 3;  // a screen, and so much of the matrix, in two passes: no longer less than all at once
  float share_ = -1;          // computed lately, of all blocks; −1: nothing is known
  int pause_ = 0, left_ = 0;  // steps
};

// Not thread-safe. Weights, tables and the KV pool are the caller's, who keeps them until the decoder is gone.
class Decoder {
 public:
  // Throws std::invalid_argument where the weights do not fit the spec.
  Decoder(const Operators& operators, const DecoderSpec& spec, DecoderWeights weights, int threads);

  const char* isa() const { return operators_.name; }
  int threads() const { return team_.most(); }
  size_t kv_bytes_per_page() const;   // over all layers
  size_t scratch_bytes() const;       // that the steps so far have needed
  // What share of the output matrix the last step has computed exactly: 1, or less where it looked for the greatest by bounds.
  double computed_share() const { return screened_ ? static_cast<double>(computed_) / weights_.head.blocks() : 1.0; }

  // The pool [pages][layers] of kv_page_bytes each, at a multiple of 64 bytes: a page's layers lie together, so that the
  // first tokens touch one huge page of the kernel's and not one for each layer.
  void set_kv(uint8_t* pool, int32_t pages);
  // cos_sin [positions, rotary] as in `HeadJob`. `rotary`: elements of a head that turn.
  void set_rope(int32_t table, const float* cos_sin, int32_t positions, int32_t rotary);

  // Writes K and V of all rows to their pages and float32 logits [wanted, vocab_size]. With `best` [wanted] the ids of each
  // row's greatest logit instead, the first of equal ones, or −1 where the row is no distribution; `logits` is scratch then.
  // Throws std::invalid_argument, before anything is written, for a batch that does not hold together or reaches beyond the
  // vocabulary, the pool or the rope tables.
  void step(const StepBatch& batch, float* logits, int32_t* best = nullptr);

  Profile profile;

 private:
  friend class StepWorker;

  struct RopeTable {
    const float* cos_sin = nullptr;
    int32_t positions = 0;
    int32_t rotary = 0;
  };

  // What one thread has for itself.
  struct Private {
    ActivationBuffer hidden, mixed;  // of few rows, which every thread converts for itself
    Buffer scratch;                  // of the attention operator
    std::vector<Best> best;          // of each wanted row, among the logits that the thread has computed
    std::vector<float> maxima;       // of a piece of a row of logits
  };

  void check(const StepBatch& batch) const;
  void plan(const StepBatch& batch);
  bool may_screen(int32_t wanted) const;
  void reserve(const StepBatch& batch);
  void choose(int32_t* best) const;

  DecoderSpec spec_;
  DecoderWeights weights_;
  const Operators& operators_;
  Team team_;
  uint8_t* pool_ = nullptr;
  int32_t pages_ = 0;
  std::vector<RopeTable> ropes_;

  // Of the step in progress.
  std::vector<SequenceView> sequences_;
  std::vector<int32_t> positions_;   // of each row
  std::vector<int32_t> row_pages_;   // of each row: the page that its K and V go to
  std::vector<int32_t> head_starts_; // pieces of rows whose K and V share no cache line with another piece's
  std::vector<uint8_t> is_wanted_;   // of each row
  bool all_wanted_ = false;          // the wanted rows are all rows, in order
  std::vector<int32_t> windows_;     // the distinct ones
  std::vector<AttentionPlan> plans_; // of each distinct window, then the last layer's
  std::vector<int32_t> plan_of_;     // of each layer

  bool best_only_ = false;           // of each wanted row only the greatest logit matters
  Screening screening_;
  bool screened_ = false;            // it is looked for by bounds
  std::atomic<int> computed_{0};     // blocks of the output matrix, then
  std::vector<std::array<Peak, kScreenedRows>> peaks_;  // of each thread
  Buffer stream_, wanted_stream_, qkv_, mixed_rows_, added_, partials_;
  ActivationBuffer hidden_, mixed_, inner_;
  std::vector<Private> private_;
};

}  // namespace inferloom
