// Low-rank adapters, row by row (csrc/lora.h): their matrices are small and stay in the caches.
#pragma once
#include "../isa/simd.h"
#include "../lora.h"

namespace inferloom {
namespace {

template <class S>
float lora_dot(const uint16_t* a, const uint16_t* x, int cols) {
  auto even = S::zero(), odd = S::zero();
  int i = 0;
  for (; i + 64 <= cols; i += 64) {
    even = S::bf16_dot(even, S::load_pairs(a + i), S::load_pairs(x + i));
    odd = S::bf16_dot(odd, S::load_pairs(a + i + 32), S::load_pairs(x + i + 32));
  }
  for (; i < cols; i += 32) {
    const int n = cols - i < 32 ? cols - i : 32;
    even = S::bf16_dot(even, S::load_pairs(a + i, n), S::load_pairs(x + i, n));
  }
  return S::sum(S::add(even, odd));
}

template <class S>
void lora_reduce(const LoraJob& job, int row_begin, int row_end) {
  const int cols = job.input->cols;
  for (int row = row_begin; row < row_end; ++row) {
    if (job.adapter_of_row[row] < 0) continue;
    const LoraAdapter& adapter = job.adapters[job.adapter_of_row[row]];
    const uint16_t* x = job.input->bf16 + int64_t{row} * job.input->stride;
    for (int r = 0; r < adapter.rank; ++r)
      job.reduced[row * job.reduced_stride + r] = lora_dot<S>(adapter.a + int64_t{r} * cols, x, cols);
  }
}

// VECTORS vectors of outputs from column `begin` on; the last of them has `n` (1 … 16) columns.
template <class S, int VECTORS>
void lora_expand_columns(const LoraAdapter& adapter, const float* reduced, int32_t cols, int begin, int n,
                         float* output) {
  typename S::F sums[VECTORS];
  for (int v = 0; v < VECTORS; ++v) sums[v] = S::zero();
  for (int r = 0; r < adapter.rank; ++r) {
    const uint16_t* b = adapter.b + int64_t{r} * cols + begin;
    const auto factor = S::set(reduced[r]);
    for (int v = 0; v < VECTORS; ++v) {
      const auto weights = v + 1 < VECTORS || n == 16 ? S::load_bf16(b + 16 * v) : S::load_bf16(b + 16 * v, n);
      sums[v] = S::fma(weights, factor, sums[v]);
    }
  }
  const auto scale = S::set(adapter.scale);
  for (int v = 0; v < VECTORS; ++v) {
    float* y = output + begin + 16 * v;
    const int lanes = v + 1 < VECTORS ? 16 : n;
    S::store(y, S::fma(sums[v], scale, S::load(y, lanes)), lanes);
  }
}

template <class S>
void lora_expand(const LoraJob& job, int block_begin, int block_end, int row_begin, int row_end) {
  const int end = 16 * block_end < job.cols ? 16 * block_end : job.cols;
  for (int row = row_begin; row < row_end; ++row) {
    if (job.adapter_of_row[row] < 0) continue;
    const LoraAdapter& adapter = job.adapters[job.adapter_of_row[row]];
    const float* reduced = job.reduced + row * job.reduced_stride;
    float* output = job.output + row * job.output_stride;
    int begin = 16 * block_begin;
    for (; begin + 64 <= end; begin += 64) lora_expand_columns<S, 4>(adapter, reduced, job.cols, begin, 16, output);
    for (; begin < end; begin += 16)
      lora_expand_columns<S, 1>(adapter, reduced, job.cols, begin, end - begin < 16 ? end - begin : 16, output);
  }
}

template <class S>
constexpr LoraOperators lora_operators() {
  return {&lora_reduce<S>, &lora_expand<S>};
}

}  // namespace
}  // namespace inferloom
