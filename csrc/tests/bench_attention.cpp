// How long attention takes: decoding with many sequences whose keys and values come from memory, with and without the
// new position's keys and values, and a prefill. Not a test; built by hand:
//   g++ -O3 -std=c++17 -fopenmp … csrc/tests/bench_attention.cpp and the objects of the operators
// Usage: bench_attention [threads [short]]; `short` leaves out what a change of the common case need not look at.
// Prints microseconds per sequence and key-value head of a decode, and milliseconds of a prefill's attention and heads.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../operators.h"

namespace inferloom {
namespace {

struct Shape {
  const char* name;
  int layers, heads, kv_heads, dim;
};

// Anonymous memory of the kernel, with pages of 2 MiB or 4 KiB.
class Mapped {
 public:
  Mapped(size_t bytes, bool huge) : bytes_(bytes + (size_t{2} << 20)) {
    begin_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin_ == MAP_FAILED) std::abort();
    madvise(begin_, bytes_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  ~Mapped() { munmap(begin_, bytes_); }
  uint8_t* data() const { return static_cast<uint8_t*>(begin_); }

 private:
  size_t bytes_;
  void* begin_;
};

class Model {
 public:
  Model(const Operators& operators, const Shape& shape, KvType type, int sequences, int context, bool huge)
      : ops_(operators), shape_(shape), page_bytes_(kv_page_bytes(type, shape.kv_heads, shape.dim)), context_(context),
        per_sequence_((context + kPageSize - 1) / kPageSize), pages_(per_sequence_ * sequences),
        memory_(page_bytes_ * static_cast<size_t>(pages_) * static_cast<size_t>(shape.layers), huge), type_(type) {
    std::vector<int32_t> order(static_cast<size_t>(pages_));
    for (int i = 0; i < pages_; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    tables_ = order;
    width_ = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    std::mt19937 random(2);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> row(static_cast<size_t>(width_));
    for (float& x : row) x = uniform(random);
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int32_t page = 0; page < pages_; ++page)
        for (int32_t p = 0; p < kPageSize; ++p) {
          const HeadJob job{row.data(), width_, nullptr,     nullptr,        0,
                            nullptr,    0,      shape.heads, shape.kv_heads, shape.dim};
          ops_.heads(job, pool(layer), &p, &page, 0, 1);
        }
    spec_ = {shape.heads, shape.kv_heads, shape.dim, 0.1f, 0, 0, nullptr, nullptr, nullptr};
  }

  // Seconds of the attention of all layers; every sequence has `rows` query rows at its end. `by_head`: a unit makes
  // its queries, keys and values first, as a step of decodes does.
  double run(int threads, int sequences, int rows, bool by_head) {
    const int out_width = shape_.heads * shape_.dim;
    std::vector<float> q(static_cast<size_t>(sequences) * rows * width_, 0.3f),
        out(static_cast<size_t>(sequences) * rows * out_width);
    const std::vector<float> table(static_cast<size_t>(context_) * shape_.dim, 0.7f);
    std::vector<int32_t> positions, row_pages;
    for (int s = 0; s < sequences; ++s)
      for (int p = context_ - rows; p < context_; ++p) {
        positions.push_back(p);
        row_pages.push_back(tables_[static_cast<size_t>(s * per_sequence_ + p / kPageSize)]);
      }
    std::vector<SequenceView> views;
    for (int s = 0; s < sequences; ++s) views.push_back({s * rows, rows, context_, tables_.data() + s * per_sequence_});
    std::vector<AttentionUnit> units;
    for (const SequenceView& view : views)
      for (int head = 0; head < shape_.kv_heads; ++head)
        for (int row = 0; row < rows; row += kAttentionRows)
          units.push_back({&view, row, std::min(kAttentionRows, rows - row), head, 0, context_, nullptr});
    for (size_t u = 0; u + 1 < units.size(); ++u) units[u].next = &units[u + 1];
    std::vector<std::vector<float>> scratches(static_cast<size_t>(threads),
                                              std::vector<float>(attention_scratch(spec_)));
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
      std::vector<float>& scratch = scratches[static_cast<size_t>(omp_get_thread_num())];
      for (int layer = 0; layer < shape_.layers; ++layer) {
#pragma omp for schedule(static)
        for (size_t u = 0; u < units.size(); ++u) {
          if (by_head)
            heads(layer, q, table, positions, row_pages, units[u].sequence->first_row, rows, units[u].kv_head, 1);
          ops_.attend(spec_, pool(layer), units[u], q.data(), width_, out.data(), out_width, scratch.data());
        }
      }
    }
    return omp_get_wtime() - start;
  }

  // Seconds of all layers' heads of a prefill of the whole context.
  double run_heads(int threads) {
    std::vector<float> q(static_cast<size_t>(context_) * width_, 0.3f);
    const std::vector<float> table(static_cast<size_t>(context_) * shape_.dim, 0.7f);
    std::vector<int32_t> positions, row_pages;
    for (int p = 0; p < context_; ++p) {
      positions.push_back(p);
      row_pages.push_back(tables_[static_cast<size_t>(p / kPageSize)]);
    }
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    for (int layer = 0; layer < shape_.layers; ++layer) {
#pragma omp for schedule(static)
      for (int row = 0; row < context_; row += 16)
        heads(layer, q, table, positions, row_pages, row, std::min(16, context_ - row), 0, shape_.kv_heads);
    }
    return omp_get_wtime() - start;
  }

 private:
  void heads(int layer, std::vector<float>& q, const std::vector<float>& table, const std::vector<int32_t>& positions,
             const std::vector<int32_t>& pages, int row, int rows, int kv_head, int kv_heads) {
    const HeadJob job{q.data(),   width_,       table.data(),    table.data(), 1e-6f,   table.data(),
                      shape_.dim, shape_.heads, shape_.kv_heads, shape_.dim,   kv_head, kv_head + kv_heads};
    ops_.heads(job, pool(layer), positions.data(), pages.data(), row, row + rows);
  }

  KvPool pool(int layer) const {
    return {memory_.data() + page_bytes_ * static_cast<size_t>(pages_) * static_cast<size_t>(layer),
            static_cast<int64_t>(page_bytes_), type_, shape_.kv_heads, shape_.dim};
  }

  const Operators& ops_;
  const Shape shape_;
  size_t page_bytes_;
  int context_, per_sequence_, pages_, width_;
  Mapped memory_;
  KvType type_;
  std::vector<int32_t> tables_;
  AttentionSpec spec_{};
};

double best_of(int times, Model& model, int threads, int sequences, int rows, bool by_head) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) best = std::min(best, model.run(threads, sequences, rows, by_head));
  return best;
}

void run(Isa isa, int threads, bool brief) {
  const Operators& ops = operators(isa);
  const Shape shapes[] = {{"SmolLM2-135M", 30, 9, 3, 64}, {"Qwen3-0.6B", 28, 16, 8, 128}};
  std::printf("%s, %d threads\n", ops.name, threads);
  for (const Shape& shape : shapes)
    for (KvType type : {KvType::BF16, KvType::INT8}) {
      const char* kind = type == KvType::BF16 ? "bf16" : "int8";
      if (brief && type == KvType::INT8) continue;
      for (int context : {150, 2048}) {
        for (bool huge : {false, true}) {
          if (brief && !huge) continue;
          const int layers = context == 150 ? shape.layers : 4;
          Model model(ops, {shape.name, layers, shape.heads, shape.kv_heads, shape.dim}, type, 16, context, huge);
          for (bool by_head : {false, true}) {
            const double cold = best_of(5, model, threads, 16, 1, by_head);
            std::printf("%s %s decode 16 x %d, %s pages%s: %.2f us per sequence and KV head and thread\n", shape.name,
                        kind, context, huge ? "2 MiB" : "4 KiB", by_head ? ", with heads" : "",
                        cold * 1e6 * threads / (layers * 16.0 * shape.kv_heads));
          }
        }
        Model model(ops, {shape.name, 1, shape.heads, shape.kv_heads, shape.dim}, type, 1, context, true);
        const double hot = best_of(50, model, 1, 1, 1, false);
        std::printf("%s %s decode 1 x %d, cached: %.2f us per KV head\n", shape.name, kind, context,
                    hot * 1e6 / shape.kv_heads);
      }
      Model model(ops, {shape.name, 2, shape.heads, shape.kv_heads, shape.dim}, type, 1, 512, true);
      const double prefill = best_of(5, model, threads, 1, 512, false) / 2 * shape.layers;
      const double products = 512.0 * 513 / 2 * 2 * shape.heads * shape.dim * shape.layers;
      double heads = 1e9;
      for (int i = 0; i < 5; ++i) heads = std::min(heads, model.run_heads(threads) / 2 * shape.layers);
      std::printf("%s %s prefill 512: %.1f ms, %.0f GMAC/s; heads %.1f ms\n", shape.name, kind, prefill * 1e3,
                  products / prefill / 1e9, heads * 1e3);
    }
}

}  // namespace
}  // namespace inferloom

int main(int argc, char** argv) {
  inferloom::run(inferloom::best_isa(), argc > 1 ? std::atoi(argv[1]) : 2, argc > 2);
  return 0;
}
