// One thread's way through a step. All threads go through the same stages; a barrier stands where one reads what
// another wrote.
#pragma once
#include <cstdint>

#include "decoder.h"

namespace inferloom {

// Up to here every thread normalises and converts all rows for itself: that costs less than a barrier and keeps the
// result in its cache.
constexpr int kFewRows = 4;

inline uint32_t qkv_forms(const DecoderLayer& layer) {
  return form_of(layer.q.layout) | form_of(layer.k.layout) | form_of(layer.v.layout);
}

inline uint32_t mlp_forms(const DecoderLayer& layer) {
  return form_of(layer.gate.layout) | (layer.up.present() ? uint32_t{form_of(layer.up.layout)} : 0u);
}

class StepWorker {
 public:
  StepWorker(Decoder& decoder, const StepBatch& batch, float* logits, Team::Member team);

  void run();

 private:
  void embed();
  // Norm, projections, and queries, keys and values to their places. `by_head`: that last part is left to `mix`, whose
  // pieces then make what they read: no barrier lies between.
  void attend(const DecoderLayer& layer, const KvPool& pool, bool by_head);
  // Attention, and its result into the stream. After the last layer's only the wanted rows go on.
  void mix(const DecoderLayer& layer, const KvPool& pool, const AttentionPlan& plan, bool by_head, bool last);
  void mlp(const DecoderLayer& layer);
  void output();
  // Bounds of the logits, and the exact ones among which the greatest of each row is.
  void screen(const LinearJob& job);
  // The greatest of the logits of `cols` columns from `first` on.
  void note(int32_t first, int32_t cols, int32_t row_begin, int32_t row_end);

  // Work on rows: shared out, or all of it done by every thread `alone`.
  template <class Work>
  void each_row(Stage stage, bool alone, Work&& work);
  // Matrices that read the same activations, in pieces that `compute` is called with, or the linear operator.
  template <class Compute>
  void linears(Stage stage, const LinearJob* jobs, int count, Compute&& compute);
  void linears(Stage stage, const LinearJob* jobs, int count);
  // What attention or MLP add to the stream: the linear layer does it itself where no norm lies between.
  void project(Stage stage, const Linear& weight, const Activations& input, const Norm& norm);

  Activations normed(const Norm& norm, uint32_t forms);
  void norm_rows(const Norm& norm, Activations* output, int32_t begin, int32_t end);
  HeadJob head_job(const DecoderLayer& layer) const;
  NormJob job_of(const Norm& norm, const float* input) const;
  void wait();

  static constexpr int kMostJobs = 3;

  Decoder& decoder_;
  const DecoderSpec& spec_;
  const Operators& operators_;
  const StepBatch& batch_;
  float* logits_;
  Team::Member team_;
  Decoder::Private& own_;
  Profile::Watch watch_;

  int32_t rows_;            // that go on: all, and past the last layer's attention those wanted
  float* stream_;           // [rows_, hidden_size]
  int64_t qkv_stride_;
  int64_t page_bytes_;      // of a KV page of one layer
  Activations mlp_input_;   // made before the attention's result is added, with parallel_residual
};

}  // namespace inferloom
