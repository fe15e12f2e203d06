// The operators of a decoder step, one table per instruction set. Every operator computes a share of its output: the
// caller (`decoder.cpp`, `bindings.cpp`, the tests) divides the work among threads and waits between stages.
//
// Batch-invariant: a row's result is the same bits whatever other rows are computed with it and however the work was
// divided.
#pragma once
#include <cstdint>

#include "activations.h"
#include "linear.h"
#include "lora.h"
#include "sampling.h"

namespace inferloom {

enum class Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, NONE = 3 };
enum class NormKind : int32_t { RMS = 0, LAYER = 1 };

constexpr int kPageSize = 32;  // tokens of a KV page

// y[m, n] = (add ? y[m, n] : 0) + factor * (W x + bias)[m, n]
struct LinearJob {
  const Linear* weight;
  const Activations* input;
  float* output;         // [M, output_stride]
  int64_t output_stride; // elements
  float factor;
  bool add;
};

// Where a bound from above of a token's results is greatest.
struct Peak {
  float bound;
  int32_t block;
};
constexpr int kScreenedRows = 4;  // tokens whose greatest results are looked for at a time

// A token's greatest result so far, the first of equal ones; not a number from the first that is none on.
struct Best {
  float value = -__builtin_inff();
  int32_t id = -1;

  void see(float other, int32_t other_id) {
    if (other != other) value = other;
    if (other > value || (other == value && other_id < id)) value = other, id = other_id;
  }
};

// h = activation(gate x + bias) * (up x + bias), written in the forms of `output`; Activation::NONE without `up` is
// refused by the caller. With `up` absent: h = activation(gate x + bias). The unit of division is `kGatedUnit` columns
// of h.
constexpr int kGatedUnit = 128;
struct GatedJob {
  const Linear* gate;
  const Linear* up;  // null: not gated
  const Activations* input;
  Activations* output;
  Activation activation;
};

struct NormJob {
  const float* input;   // [M, stride]
  int64_t input_stride;
  const float* weight;  // [K]; null: ones
  const float* bias;    // [K] or null (LAYER)
  float eps;
  NormKind kind;
  int32_t cols;         // K
};

// Queries and keys after the projections: per-head RMSNorm where weights are given, rotation of the first `rotary` of
// head_dim elements (half-split: element i pairs with i + rotary / 2), K and V to their pages.
struct HeadJob {
  // [M, stride]: heads · D queries, kv_heads · D keys, kv_heads · D values; queries are changed in place.
  float* qkv;
  int64_t stride;
  const float* q_norm;      // [D] or null
  const float* k_norm;
  float eps;
  const float* cos_sin;     // [positions, rotary]: rotary / 2 cosines, then rotary / 2 sines; null: no rotation (NoPE)
  int32_t rotary;
  int32_t heads, kv_heads, head_dim;
  int32_t kv_begin = 0, kv_end = INT32_MAX;  // which key-value heads, with the query heads that share them
};

// KV pool of a layer: page p begins at pool + p * page_stride; in it [kv_heads] of [keys | values], each 32 · D
// bfloat16:
//   keys   [2 blocks of 16 positions][D / 2][16 positions][2]: two consecutive elements of a key side by side
//   values [16 pairs of positions][D][2]: two consecutive positions side by side
// (what a pairwise bfloat16 dot product reads without a shuffle). D is a multiple of 16. Or int8 with a float scale a
// position and head: see kernels/kv_layout.h.
enum class KvType : int32_t { BF16 = 0, INT8 = 1 };
struct KvPool {
  uint8_t* base;        // of the layer
  int64_t page_stride;  // bytes from a page to the next one of the same layer
  KvType type;
  int32_t kv_heads, head_dim;
};
size_t kv_page_bytes(KvType type, int kv_heads, int head_dim);  // of one layer

struct SequenceView {
  int32_t first_row, rows;  // its rows of this step
  int32_t context;          // tokens after this step; row i stands at position context - rows + i
  const int32_t* pages;
};

struct AttentionSpec {
  int32_t heads, kv_heads, head_dim;
  float scale;
  float soft_cap;        // 0: none
  int32_t window;        // 0: none; w: itself and the w - 1 tokens before
  // Sinks and masks are computed and tested here, but no model reaches them: no family that the loader reads has sinks
  // (the step would pass them on), and the step knows no masks.
  const float* sinks;    // [heads] or null: a logit of each head that takes part in the softmax and has no value
  // Run-length masks: row r sees the positions of the runs mask_runs[mask_starts[r] … mask_starts[r + 1]), lengths of
  // hidden, seen, hidden … positions in turn; past the last run all is hidden. Null: causal alone. Causality holds in
  // any case.
  const int32_t* mask_runs;
  const int32_t* mask_starts;
};

// A share of the attention of one layer: query rows [row, row + rows) of a sequence (≤ kAttentionRows) with one
// key-value head, keys of positions [key_begin, key_end). Splits of the keys lie at multiples of kKeySplit, so that
// they do not depend on the batch.
constexpr int kAttentionRows = 8;
constexpr int kKeySplit = 1024;
constexpr int kMostHeadDim = 256;
struct AttentionUnit {
  const SequenceView* sequence;
  int32_t row, rows;
  int32_t kv_head;
  int32_t key_begin, key_end;
  // Null: the only split, the result goes to `output`; else [rows · group of heads, D + 2]: unnormalised sums, maximum,
  // weight.
  float* partial;
  const AttentionUnit* next = nullptr;  // what this thread probably computes next, and so on: fetched meanwhile
};

struct Operators {
  const char* name;  // "portable", "avx2", "avx512", "avx512_vnni_bf16"

  // Output rows of blocks [block_begin, block_end) (16 each) for tokens [row_begin, row_end).
  void (*linear)(const LinearJob&, int block_begin, int block_end, int row_begin, int row_end);
  // For jobs with a weight in Q8_HALVES or Q8_32 without bias, a positive factor, no `add` and at most kScreenedRows rows, of which only each
  // row's greatest result matters. `bound`, of the same job with the weight's screen (itself, or a Q4_DITHERED beside it), writes a bound from
  // above of each result, and each row's greatest to `peaks`. `settle` computes the blocks where a bound reaches `best`, shows it their results,
  // and returns how many they were; the bounds stay.
  // `peaks` and `best`: [row_end − row_begin].
  void (*bound)(const LinearJob&, Peak* peaks, int block_begin, int block_end, int row_begin, int row_end);
  int (*settle)(const LinearJob&, Best* best, int block_begin, int block_end, int row_begin, int row_end);
  // Units of kGatedUnit columns of h.
  void (*gated)(const GatedJob&, int unit_begin, int unit_end, int row_begin, int row_end);
  // Rows [row_begin, row_end) of the residual stream, normalised into every form of `output`.
  void (*norm)(const NormJob&, Activations* output, int row_begin, int row_end);
  // The same without Activations: float rows out (post-norms), in place allowed.
  void (*norm_rows)(const NormJob&, float* output, int64_t output_stride, int row_begin, int row_end);
  // Float rows into every form of `output`.
  void (*convert)(const float* input, int64_t input_stride, Activations* output, int row_begin, int row_end);
  // Rows of the embedding table (any layout) times `factor`, float32 [M, stride].
  void (*embed)(const Linear& table, const int32_t* ids, float factor, float* output, int64_t stride, int row_begin,
                int row_end);
  // positions: of each row; pages: of each row's KV page.
  void (*heads)(const HeadJob&, const KvPool&, const int32_t* positions, const int32_t* pages, int row_begin,
                int row_end);
  // q: [M, q_stride] after `heads`; output [M, output_stride] = heads · D. scratch: attention_scratch() floats of this
  // thread.
  void (*attend)(const AttentionSpec&, const KvPool&, const AttentionUnit&, const float* q, int64_t q_stride,
                 float* output, int64_t output_stride, float* scratch);
  // Joins `splits` partial results of rows · group (consecutive in memory) into the output.
  void (*merge)(const AttentionSpec&, const AttentionUnit&, const float* partials, int splits, float* output,
                int64_t output_stride);
  // output = soft_cap * tanh(x / soft_cap), in place, over [row_begin, row_end) of logits.
  void (*soft_cap)(float* logits, int64_t stride, int cols, float cap, int row_begin, int row_end);
  SamplingOperators sampling;
  LoraOperators lora;  // tested by itself: the step has no adapters yet
};

size_t attention_scratch(const AttentionSpec&);  // floats

enum class Isa : int32_t { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AVX512_VNNI_BF16 = 3 };

Isa best_isa();  // of this processor, as INFERLOOM_ISA (a name as above) allows; throws std::runtime_error
const Operators& operators(Isa isa);  // throws where the processor or the build lacks it
bool isa_available(Isa isa);

}  // namespace inferloom
