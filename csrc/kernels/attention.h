// Attention of a few query rows to the paged keys and values of their sequence, for all query heads that share a
// key-value head.
//
// Softmax runs online over blocks of kKeyBlock positions (Milakov & Gimelshein 2018; Dao et al., FlashAttention, 2022),
// in base 2: scores carry the factor log2(e). Blocks and splits lie at fixed absolute positions and a position that a
// row does not see contributes exact zeros, so a row's bits depend on its own position and context alone, not on its
// tile or on who computes which split.
#pragma once
#include "../isa/math.h"
#include "attention_buffers.h"
#include "attention_fetch.h"
#include "attention_product.h"
#include "attention_softmax.h"
#include "kv_layout.h"

namespace inferloom {
namespace {

template <class S>
constexpr int kProductVectors = S::kRegisters >= 24 ? 4 : 2;  // of a tile of products, and its rows
template <class S>
constexpr int kProductRows = S::kRegisters / kProductVectors<S>;

inline int clamped(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

template <class S>
class AttentionTile {
 public:
  AttentionTile(const AttentionSpec& spec, const KvPool& pool, const AttentionUnit& unit, float* scratch)
      : spec_(spec), pool_(pool), unit_(unit), layout_{pool.head_dim, pool.type}, dim_(pool.head_dim),
        group_(spec.heads / spec.kv_heads), queries_(unit.rows * group_),
        position_(unit.sequence->context - unit.sequence->rows + unit.row), first_key_(first_key(spec, unit)),
        end_key_(end_key(unit)) {
    AttentionBuffers::divide(scratch, queries_, dim_, &buffers_);
  }

  void run(const float* q, int64_t q_stride, float* output, int64_t output_stride) {
    load_queries(q, q_stride);
    clear(buffers_.totals, buffers_.total_maxima, buffers_.total_weights);
    for (int split = first_key_ / kKeySplit * kKeySplit; split < end_key_; split += kKeySplit) {
      clear(buffers_.sums, buffers_.maxima, buffers_.weights);
      const int end = split + kKeySplit < end_key_ ? split + kKeySplit : end_key_;
      const int begin = split > first_key_ ? split : first_key_;
      for (int block = begin / kKeyBlock * kKeyBlock; block < end; block += kKeyBlock) attend_block(block, begin, end);
      for (int q = 0; q < queries_; ++q)
        join<S>(total(q), buffers_.sums + q * dim_, buffers_.maxima[q], buffers_.weights[q], dim_);
    }
    write(output, output_stride);
  }

 private:
  using F = typename S::F;

  void load_queries(const float* q, int64_t q_stride) {
    for (int row = 0; row < unit_.rows; ++row) {
      const float* heads =
          q + (unit_.sequence->first_row + unit_.row + row) * q_stride + int64_t{unit_.kv_head} * group_ * dim_;
      uint16_t* queries = buffers_.queries + int64_t{row} * group_ * dim_;
      for (int i = 0; i < group_ * dim_; i += 16) S::store_bf16(queries + i, S::load(heads + i));
    }
  }

  void clear(float* sums, float* maxima, float* weights) const {
    for (int i = 0; i < queries_ * dim_; i += 16) S::store(sums + i, S::zero());
    for (int i = 0; i < queries_; ++i) maxima[i] = kNoMaximum, weights[i] = 0.0f;
  }

  Softmax total(int q) const {
    return {buffers_.totals + q * dim_, buffers_.total_maxima + q, buffers_.total_weights + q};
  }

  // Positions [begin, end) of the block that begins at `block`.
  void attend_block(int block, int begin, int end) {
    begin = begin > block ? begin - block : 0;
    end = end < block + kKeyBlock ? end - block : kKeyBlock;
    const int page_begin = begin / kPageSize, page_end = (end + kPageSize - 1) / kPageSize;
    for (int page = page_begin; page < page_end; ++page) locate(block / kPageSize, page);
    score(page_begin, page_end);
    for (int row = 0; row < unit_.rows; ++row) hide(row, block, page_begin, page_end, begin, end);
    soften(page_begin, page_end);
    add_values(begin, end);
    fetches_.template flush<S>();
  }

  void locate(int first_page, int page) {
    const uint8_t* head = head_page(pool_, layout_, unit_, first_page + page);
    fetches_.add_after(spec_, pool_, layout_, unit_, first_page + page);
    if (layout_.type == KvType::INT8) return expand(page, head);
    keys_[page] = reinterpret_cast<const uint16_t*>(head + layout_.keys());
    values_[page] = reinterpret_cast<const uint16_t*>(head + layout_.values());
  }

  // An int8 page as bfloat16 integers, which hold them exactly; the scales go to the scores and the probabilities.
  void expand(int page, const uint8_t* head) {
    key_scales_[page] = reinterpret_cast<const float*>(head + layout_.key_scales());
    value_scales_[page] = reinterpret_cast<const float*>(head + layout_.value_scales());
    const int elements = kPageSize * dim_;
    uint16_t* expanded = buffers_.expanded + int64_t{2} * page * elements;
    const int8_t* bytes = reinterpret_cast<const int8_t*>(head + layout_.keys());
    auto& lines = fetches_.front();
    for (int i = 0; i < 2 * elements; i += 32) {  // the values follow the keys
      if (i % 64 == 0) FetchQueue::fetch<S, 1>(lines);
      S::store_pairs(expanded + i,
                     S::pack(S::to_float(S::load_int8(bytes + i)), S::to_float(S::load_int8(bytes + i + 16))));
    }
    keys_[page] = expanded;
    values_[page] = expanded + elements;
  }

  // Page by page: the keys stay in the first-level cache while all queries pass by.
  void score(int page_begin, int page_end) {
    int page = page_begin;
    if (kProductVectors<S> >= 4)
      for (; page + 2 <= page_end; page += 2) score_pages<4>(page);
    for (; page < page_end; ++page) score_pages<2>(page);
  }

  template <int VECTORS>
  void score_pages(int page) {
    for_row_tiles<kProductRows<S>>(queries_,
                                   [&](auto rows, int q) { score_tile<decltype(rows)::value, VECTORS>(q, page); });
  }

  template <int ROWS, int VECTORS>
  void score_tile(int q, int page) {
    F sums[ROWS][VECTORS];
    const uint16_t* keys[VECTORS];
    for (int v = 0; v < VECTORS; ++v) keys[v] = keys_[page + v / 2] + v % 2 * (kKeyLanes * dim_);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) sums[i][v] = S::zero();
    multiply<S>({buffers_.queries + q * dim_, dim_, 2 * kKeyLanes, dim_ / 2}, keys, fetches_.front(), sums);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v)
        S::store(buffers_.scores + (q + i) * kKeyBlock + (page * 2 + v) * 16, sums[i][v]);
  }

  // Finishes the scores of the heads of a row, all but a last factor: what the row does not see becomes −∞.
  void hide(int row, int block, int page_begin, int page_end, int begin, int end) {
    const int position = position_ + row;
    if (end > position + 1 - block) end = position + 1 - block;
    if (spec_.window && begin < position + 1 - spec_.window - block) begin = position + 1 - spec_.window - block;
    const bool masked = spec_.mask_runs != nullptr;
    if (masked) expand_runs(unit_.sequence->first_row + unit_.row + row, block);
    const bool all = masked || layout_.type == KvType::INT8 || spec_.soft_cap > 0.0f;
    for (int v = 2 * page_begin; v < 2 * page_end; ++v)
      if (all || v * 16 < begin || v * 16 + 16 > end)
        for (int q = row * group_; q < (row + 1) * group_; ++q) finish_scores(q, v, begin, end, masked);
  }

  void expand_runs(int row, int block) {
    int position = 0;
    bool seen = false;
    for (int i = 0; i < kKeyBlock; ++i) buffers_.limits[i] = -kInfinity;
    for (int run = spec_.mask_starts[row]; run < spec_.mask_starts[row + 1]; ++run, seen = !seen) {
      const int next = position + spec_.mask_runs[run];
      if (seen)
        for (int i = clamped(position - block, 0, kKeyBlock); i < clamped(next - block, 0, kKeyBlock); ++i)
          buffers_.limits[i] = kInfinity;
      position = next;
    }
  }

  void finish_scores(int q, int v, int begin, int end, bool masked) {
    float* scores = buffers_.scores + q * kKeyBlock + v * 16;
    F s = S::load(scores);
    if (layout_.type == KvType::INT8) s = S::mul(s, S::load(key_scales_[v / 2] + v % 2 * 16));
    if (spec_.soft_cap > 0.0f) s = tanh<S>(S::mul(s, S::set(spec_.scale / spec_.soft_cap)));
    if (v * 16 < begin) s = S::min(s, S::load(kEdges + 16 - clamped(begin - v * 16, 0, 16)));
    if (v * 16 + 16 > end) s = S::min(s, S::load(kEdges + 32 - clamped(end - v * 16, 0, 16)));
    if (masked) s = S::min(s, S::load(buffers_.limits + v * 16));
    S::store(scores, s);
  }

  // Scores into probabilities. What a query does once is done for 16 of them at a time.
  void soften(int page_begin, int page_end) {
    const F scale = S::set((spec_.soft_cap > 0.0f ? spec_.soft_cap : spec_.scale) * kLog2E);
    for (int q = 0; q < queries_; ++q) buffers_.tops[q] = top_score(q, page_begin, page_end);
    for (int q = 0; q < queries_; q += 16) {
      const F old = S::load(buffers_.maxima + q), maximum = S::max(S::mul(S::load(buffers_.tops + q), scale), old);
      S::store(buffers_.factors + q, exp2<S>(S::sub(old, maximum)));
      S::store(buffers_.maxima + q, maximum);
    }
    for (int q = 0; q < queries_; ++q) buffers_.added[q] = probabilities(q, page_begin, page_end, scale);
    for (int q = 0; q < queries_; q += 16) {
      const F weights = S::load(buffers_.weights + q), factors = S::load(buffers_.factors + q);
      S::store(buffers_.weights + q, S::fma(weights, factors, S::load(buffers_.added + q)));
    }
  }

  float top_score(int q, int page_begin, int page_end) {
    const float* scores = buffers_.scores + q * kKeyBlock;
    F low = S::set(-kInfinity), high = low;
    for (int page = page_begin; page < page_end; ++page) {
      low = S::max(low, S::load(scores + page * kPageSize));
      high = S::max(high, S::load(scores + page * kPageSize + 16));
    }
    return S::max_of(S::max(low, high));
  }

  // Returns their sum.
  float probabilities(int q, int page_begin, int page_end, F scale) {
    const float* scores = buffers_.scores + q * kKeyBlock;
    const F shift = S::set(-buffers_.maxima[q]);
    auto& lines = fetches_.front();
    F weight = S::zero();
    for (int page = page_begin; page < page_end; ++page) {
      FetchQueue::fetch<S, 4>(lines);
      F low = exp2<S>(S::fma(S::load(scores + page * kPageSize), scale, shift));
      F high = exp2<S>(S::fma(S::load(scores + page * kPageSize + 16), scale, shift));
      weight = S::add(weight, S::add(low, high));
      if (layout_.type == KvType::INT8) {
        low = scaled_seen(low, value_scales_[page]);
        high = scaled_seen(high, value_scales_[page] + 16);
      }
      S::store_pairs(buffers_.probabilities + q * kKeyBlock + page * kPageSize, S::pack(low, high));
    }
    return S::sum(weight);
  }

  // The scale of a position that is not seen may be anything.
  SIMD_INLINE F scaled_seen(F probability, const float* scales) {
    return S::select(S::greater(probability, S::zero()), S::mul(probability, S::load(scales)), S::zero());
  }

  void add_values(int begin, int end) {
    if (end % 2) copy_last_values(end / 2);
    int d = 0;
    if (kProductVectors<S> >= 4)
      for (; d + 64 <= dim_; d += 64) add_values_columns<4>(d, begin, end);
    for (; d + 32 <= dim_; d += 32) add_values_columns<2>(d, begin, end);
    if (d < dim_) add_values_columns<1>(d, begin, end);
  }

  template <int VECTORS>
  void add_values_columns(int d, int begin, int end) {
    for_row_tiles<kProductRows<S>>(
        queries_, [&](auto rows, int q) { add_values_tile<decltype(rows)::value, VECTORS>(q, d, begin, end); });
  }

  template <int ROWS, int VECTORS>
  void add_values_tile(int q, int d, int begin, int end) {
    F sums[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v)
        sums[i][v] = S::mul(S::load(buffers_.sums + (q + i) * dim_ + d + v * 16), S::set(buffers_.factors[q + i]));
    const int last = end / 2;  // pairs that are whole
    for (int pair = begin / 2; pair < last;) {
      const int page = pair / kPagePairs, in_page = pair % kPagePairs;
      const int page_last = (page + 1) * kPagePairs, stop = last < page_last ? last : page_last;
      add_pairs<ROWS, VECTORS>(q, pair, stop - pair, values_[page] + 2 * in_page * dim_, d, sums);
      pair = stop;
    }
    if (end % 2) add_pairs<ROWS, VECTORS>(q, last, 1, buffers_.last_values, d, sums);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) S::store(buffers_.sums + (q + i) * dim_ + d + v * 16, sums[i][v]);
  }

  template <int ROWS, int VECTORS>
  void add_pairs(int q, int pair, int pairs, const uint16_t* values, int d, F (&sums)[ROWS][VECTORS]) {
    const uint16_t* vectors[VECTORS];
    for (int v = 0; v < VECTORS; ++v) vectors[v] = values + 2 * (d + v * 16);
    multiply<S>({buffers_.probabilities + q * kKeyBlock + 2 * pair, kKeyBlock, 2 * dim_, pairs}, vectors,
                fetches_.front(), sums);
  }

  // The values of a pair whose second position is not the sequence's (it may hold anything, and 0 · NaN is not 0).
  void copy_last_values(int pair) {
    const uint16_t* values = values_[pair / kPagePairs] + 2 * (pair % kPagePairs) * dim_;
    for (int i = 0; i < dim_; ++i) {
      buffers_.last_values[2 * i] = values[2 * i];
      buffers_.last_values[2 * i + 1] = 0;
    }
  }

  void write(float* output, int64_t output_stride) {
    for (int q = 0; q < queries_; ++q) {
      if (unit_.partial) {
        float* partial = unit_.partial + int64_t{q} * (dim_ + 2);
        for (int d = 0; d < dim_; d += 16) S::store(partial + d, S::load(buffers_.totals + q * dim_ + d));
        partial[dim_] = buffers_.total_maxima[q];
        partial[dim_ + 1] = buffers_.total_weights[q];
        continue;
      }
      const int head = unit_.kv_head * group_ + q % group_;
      const int64_t row = unit_.sequence->first_row + unit_.row + q / group_;
      normalise<S>(total(q), spec_.sinks ? spec_.sinks + head : nullptr, dim_,
                   output + row * output_stride + int64_t{head} * dim_);
    }
  }

  const AttentionSpec& spec_;
  const KvPool& pool_;
  const AttentionUnit& unit_;
  const KvLayout layout_;
  const int dim_, group_, queries_, position_;  // position_: of the unit's first row
  const int first_key_, end_key_;
  FetchQueue fetches_;
  AttentionBuffers buffers_;
  const uint16_t* keys_[kBlockPages];
  const uint16_t* values_[kBlockPages];
  const float* key_scales_[kBlockPages];
  const float* value_scales_[kBlockPages];
};

template <class S>
void attend(const AttentionSpec& spec, const KvPool& pool, const AttentionUnit& unit, const float* q, int64_t q_stride,
            float* output, int64_t output_stride, float* scratch) {
  AttentionTile<S>(spec, pool, unit, scratch).run(q, q_stride, output, output_stride);
}

template <class S>
void merge(const AttentionSpec& spec, const AttentionUnit& unit, const float* partials, int splits, float* output,
           int64_t output_stride) {
  const int dim = spec.head_dim, group = spec.heads / spec.kv_heads, queries = unit.rows * group;
  const int64_t size = dim + 2;
  float sums[kMostHeadDim];
  for (int q = 0; q < queries; ++q) {
    float maximum = kNoMaximum, weight = 0.0f;
    for (int d = 0; d < dim; d += 16) S::store(sums + d, S::zero());
    for (int split = 0; split < splits; ++split) {
      const float* partial = partials + (int64_t{split} * queries + q) * size;
      join<S>({sums, &maximum, &weight}, partial, partial[dim], partial[dim + 1], dim);
    }
    const int head = unit.kv_head * group + q % group;
    const int64_t row = unit.sequence->first_row + unit.row + q / group;
    normalise<S>({sums, &maximum, &weight}, spec.sinks ? spec.sinks + head : nullptr, dim,
                 output + row * output_stride + int64_t{head} * dim);
  }
}

}  // namespace
}  // namespace inferloom
