#include "decoder_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace inferloom {

namespace {

// The operators copy a piece's activations into an order of their own: a piece should have so many blocks of the matrix
// that this costs little, and a stage so many pieces that a thread whose core was taken away delays it by a part of its
// share only.
constexpr int kPieceBlocks = 16;
constexpr size_t kPieceBytes = 64 << 10;  // few rows: some microseconds of reading
constexpr int kPiecesPerThread = 2;
constexpr int kLeastBlocks = 4;

// The activations of a tile of rows stay in a core's cache while the matrix passes by.
constexpr size_t kTileBytes = 384 << 10;
constexpr int kMostTileRows = 128;
constexpr int kLeastTileRows = 32;

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Rows that are computed together with one piece of a matrix.
int32_t tile_rows(int32_t rows, const Activations& input) {
  const size_t width = input.forms & kFloat ? 4 : input.forms & kBfloat16 ? 2 : 1;
  const auto fitting = static_cast<int32_t>(kTileBytes / (width * static_cast<size_t>(input.stride)));
  const int32_t most = std::clamp(fitting / 16 * 16, kLeastTileRows, kMostTileRows);
  return rows <= most ? rows : ceil_div(ceil_div(rows, ceil_div(rows, most)), 16) * 16;
}

// Into how many pieces a matrix is cut for each of `tiles` tiles of `rows` rows.
int32_t piece_count(const Linear& weight, int32_t rows, int32_t tiles, int32_t threads) {
  const int32_t blocks = weight.blocks();
  const auto by_bytes = static_cast<int32_t>(std::max<size_t>(1, kPieceBytes / block_bytes(weight)));
  const int32_t by_size = ceil_div(blocks, rows <= kFewRows ? by_bytes : kPieceBlocks);
  const int32_t by_threads = std::min(ceil_div(kPiecesPerThread * threads, tiles), ceil_div(blocks, kLeastBlocks));
  return std::min(ceil_div(std::max(by_size, by_threads), threads) * threads, blocks);
}

}  // namespace

StepWorker::StepWorker(Decoder& decoder, const StepBatch& batch, float* logits, Team::Member team)
    : decoder_(decoder),
      spec_(decoder.spec_),
      operators_(decoder.operators_),
      batch_(batch),
      logits_(logits),
      team_(team),
      own_(decoder.private_[static_cast<size_t>(team.index())]),
      watch_(decoder.profile, team.index()),
      rows_(batch.rows()),
      stream_(decoder.stream_.at<float>()),
      qkv_stride_(int64_t{spec_.heads + 2 * spec_.kv_heads} * spec_.head_dim),
      page_bytes_(static_cast<int64_t>(kv_page_bytes(spec_.kv_type, spec_.kv_heads, spec_.head_dim))) {}

void StepWorker::run() {
  embed();
  const std::vector<DecoderLayer>& layers = decoder_.weights_.layers;
  const auto page_stride = static_cast<int64_t>(layers.size()) * page_bytes_;
  for (size_t i = 0; i < layers.size(); ++i) {
    uint8_t* pool = decoder_.pool_ + static_cast<int64_t>(i) * page_bytes_;
    const KvPool kv{pool, page_stride, spec_.kv_type, spec_.kv_heads, spec_.head_dim};
    const AttentionPlan& plan = decoder_.plans_[static_cast<size_t>(decoder_.plan_of_[i])];
    const bool by_head = plan.by_head && !(spec_.norm_whole_rows && layers[i].q_norm), last = i + 1 == layers.size();
    attend(layers[i], kv, by_head);
    if (last && batch_.wanted() == 0) return;  // the pages are written
    mix(layers[i], kv, plan, by_head, last);
    mlp(layers[i]);
  }
  output();
}

void StepWorker::wait() {
  team_.wait();
  watch_.mark(Stage::WAIT);
}

template <class Work>
void StepWorker::each_row(Stage stage, bool alone, Work&& work) {
  if (alone) {
    work(0, rows_);
    watch_.mark(stage);
    return;
  }
  team_.share(rows_, std::max(1, rows_ / (8 * team_.threads())), work);
  watch_.mark(stage);
  wait();
}

void StepWorker::embed() {
  const int64_t hidden = spec_.hidden_size;
  each_row(Stage::EMBED, false, [&](int begin, int end) {
    operators_.embed(decoder_.weights_.embedding, batch_.token_ids.data(), spec_.embedding_factor, stream_, hidden,
                     begin, end);
    const Linear& learned = decoder_.weights_.positions;
    if (!learned.present()) return;
    float* places = decoder_.added_.at<float>();
    operators_.embed(learned, decoder_.positions_.data(), 1.0f, places, hidden, begin, end);
    for (int64_t i = begin * hidden; i < end * hidden; ++i) stream_[i] += places[i];
  });
}

NormJob StepWorker::job_of(const Norm& norm, const float* input) const {
  return {input, spec_.hidden_size, norm.weight, norm.bias, spec_.norm_eps, spec_.norm_kind, spec_.hidden_size};
}

void StepWorker::norm_rows(const Norm& norm, Activations* output, int32_t begin, int32_t end) {
  if (norm.present) {
    operators_.norm(job_of(norm, stream_), output, begin, end);
  } else {
    operators_.convert(stream_, spec_.hidden_size, output, begin, end);
  }
}

Activations StepWorker::normed(const Norm& norm, uint32_t forms) {
  const bool alone = rows_ <= kFewRows;
  Activations output = (alone ? own_.hidden : decoder_.hidden_).view(forms);
  each_row(Stage::NORM, alone, [&](int begin, int end) { norm_rows(norm, &output, begin, end); });
  return output;
}

template <class Compute>
void StepWorker::linears(Stage stage, const LinearJob* jobs, int count, Compute&& compute) {
  const int32_t tile = tile_rows(rows_, *jobs[0].input), tiles = ceil_div(rows_, tile);
  int32_t pieces[kMostJobs] = {}, in_tile = 0;
  for (int i = 0; i < count; ++i) {
    pieces[i] = piece_count(*jobs[i].weight, tile, tiles, team_.threads());
    in_tile += pieces[i];
  }
  // All pieces of one tile of rows come first, then those of the next. Neighbouring pieces of a matrix are one call: each
  // orders the activations anew, which few rows feel.
  const auto work = [&](int from, int to) {
    while (from < to) {
      const int32_t row_begin = from / in_tile * tile, row_end = std::min(row_begin + tile, rows_);
      int piece = from % in_tile, i = 0;
      while (piece >= pieces[i]) piece -= pieces[i++];
      const int together = std::min(to - from, pieces[i] - piece);
      const int32_t blocks = jobs[i].weight->blocks();
      const auto bound = [&](int32_t number) { return static_cast<int32_t>(int64_t{blocks} * number / pieces[i]); };
      const int32_t begin = bound(piece), end = bound(piece + together);
      compute(jobs[i], begin, end, row_begin, row_end);
      from += together;
    }
  };
  team_.share<true>(tiles * in_tile, 1, work);
  watch_.mark(stage);
  wait();
}

void StepWorker::linears(Stage stage, const LinearJob* jobs, int count) {
  linears(stage, jobs, count, operators_.linear);
}

void StepWorker::attend(const DecoderLayer& layer, const KvPool& pool, bool by_head) {
  const int64_t queries = int64_t{spec_.heads} * spec_.head_dim, keys = int64_t{spec_.kv_heads} * spec_.head_dim;
  const Activations input = normed(layer.input_norm, qkv_forms(layer));
  float* qkv = decoder_.qkv_.at<float>();
  const LinearJob jobs[] = {{&layer.q, &input, qkv, qkv_stride_, 1.0f, false},
                            {&layer.k, &input, qkv + queries, qkv_stride_, 1.0f, false},
                            {&layer.v, &input, qkv + queries + keys, qkv_stride_, 1.0f, false}};
  linears(Stage::QKV, jobs, 3);

  if (by_head) return;
  HeadJob job = head_job(layer);
  const bool whole = spec_.norm_whole_rows && layer.q_norm;
  if (whole) job.q_norm = job.k_norm = nullptr;
  const std::vector<int32_t>& starts = decoder_.head_starts_;
  team_.share(static_cast<int>(starts.size()) - 1, 1, [&](int piece, int) {
    const int32_t begin = starts[static_cast<size_t>(piece)], end = starts[static_cast<size_t>(piece) + 1];
    if (whole) {
      const auto normalise = [&](float* part, const float* weight, int64_t cols) {
        const NormJob norm{part,          qkv_stride_,   weight, nullptr, spec_.norm_eps, NormKind::RMS,
                           static_cast<int32_t>(cols)};
        operators_.norm_rows(norm, part, qkv_stride_, begin, end);
      };
      normalise(qkv, layer.q_norm, queries);
      normalise(qkv + queries, layer.k_norm, keys);
    }
    operators_.heads(job, pool, decoder_.positions_.data(), decoder_.row_pages_.data(), begin, end);
  });
  watch_.mark(Stage::HEADS);
  wait();
}

HeadJob StepWorker::head_job(const DecoderLayer& layer) const {
  HeadJob job{decoder_.qkv_.at<float>(), qkv_stride_, layer.q_norm, layer.k_norm, spec_.norm_eps, nullptr, 0,
              spec_.heads, spec_.kv_heads, spec_.head_dim};
  if (layer.rope >= 0) {
    job.cos_sin = decoder_.ropes_[static_cast<size_t>(layer.rope)].cos_sin;
    job.rotary = decoder_.ropes_[static_cast<size_t>(layer.rope)].rotary;
  }
  return job;
}

void StepWorker::mix(const DecoderLayer& layer, const KvPool& pool, const AttentionPlan& plan, bool by_head,
                     bool last) {
  const int64_t queries = int64_t{spec_.heads} * spec_.head_dim;
  const AttentionSpec attention{spec_.heads, spec_.kv_heads, spec_.head_dim, spec_.attention_scale,
                                spec_.attention_soft_cap, layer.window, layer.sinks, nullptr, nullptr};
  const float* qkv = decoder_.qkv_.at<float>();
  float* mixed = decoder_.mixed_rows_.at<float>();
  float* partials = decoder_.partials_.at<float>();
  team_.share(static_cast<int>(plan.shares.size()), 1, [&](int i, int) {
    const AttentionShare& share = plan.shares[static_cast<size_t>(i)];
    AttentionUnit unit = share.unit;
    if (share.partial >= 0) unit.partial = partials + share.partial;
    if (static_cast<size_t>(i) + 1 < plan.shares.size()) unit.next = &plan.shares[static_cast<size_t>(i) + 1].unit;
    if (by_head) {
      HeadJob job = head_job(layer);
      job.kv_begin = unit.kv_head;
      job.kv_end = unit.kv_head + 1;
      const int32_t first = unit.sequence->first_row;
      operators_.heads(job, pool, decoder_.positions_.data(), decoder_.row_pages_.data(), first, first + unit.rows);
    }
    operators_.attend(attention, pool, unit, qkv, qkv_stride_, mixed, queries, own_.scratch.at<float>());
  });
  watch_.mark(Stage::ATTENTION);
  wait();
  if (!plan.joins.empty()) {
    team_.share(static_cast<int>(plan.joins.size()), 1, [&](int i, int) {
      const AttentionJoin& join = plan.joins[static_cast<size_t>(i)];
      operators_.merge(attention, join.unit, partials + join.partials, join.splits, mixed, queries);
    });
    watch_.mark(Stage::ATTENTION);
    wait();
  }

  const bool chosen = last && !decoder_.all_wanted_;
  const float* before = stream_;
  if (chosen) {
    rows_ = batch_.wanted();
    stream_ = decoder_.wanted_stream_.at<float>();
  }
  // A parallel MLP reads the stream here, to which a thread that is through already adds.
  const bool alone = rows_ <= kFewRows && !chosen && !spec_.parallel_residual;
  const uint32_t forms = form_of(layer.o.layout);
  Activations input = (alone ? own_.mixed : decoder_.mixed_).view(forms);
  mlp_input_ = (alone ? own_.hidden : decoder_.hidden_).view(mlp_forms(layer));
  each_row(Stage::CONVERT, alone, [&](int begin, int end) {
    if (chosen) {
      const auto hidden = static_cast<size_t>(spec_.hidden_size);
      for (int row = begin; row < end; ++row) {
        const int64_t from = batch_.logit_rows[static_cast<size_t>(row)];
        std::memcpy(stream_ + static_cast<size_t>(row) * hidden, before + static_cast<size_t>(from) * hidden,
                    hidden * sizeof(float));
        operators_.convert(mixed + (from - row) * queries, queries, &input, row, row + 1);
      }
    } else {
      operators_.convert(mixed, queries, &input, begin, end);
    }
    if (spec_.parallel_residual) norm_rows(layer.mlp_norm, &mlp_input_, begin, end);
  });
  project(Stage::OUTPUT, layer.o, input, layer.attention_out_norm);
}

void StepWorker::project(Stage stage, const Linear& weight, const Activations& input, const Norm& norm) {
  const int64_t hidden = spec_.hidden_size;
  if (!norm.present) {
    const LinearJob job{&weight, &input, stream_, hidden, spec_.residual_factor, true};
    linears(stage, &job, 1);
    return;
  }
  float* added = decoder_.added_.at<float>();
  const LinearJob job{&weight, &input, added, hidden, 1.0f, false};
  linears(stage, &job, 1);
  each_row(Stage::NORM, false, [&](int begin, int end) {
    operators_.norm_rows(job_of(norm, added), added, hidden, begin, end);
    for (int64_t i = begin * hidden; i < end * hidden; ++i) stream_[i] += spec_.residual_factor * added[i];
  });
}

void StepWorker::mlp(const DecoderLayer& layer) {
  const Activations input = spec_.parallel_residual ? mlp_input_ : normed(layer.mlp_norm, mlp_forms(layer));
  Activations inner = decoder_.inner_.view(form_of(layer.down.layout));
  const GatedJob job{&layer.gate, layer.up.present() ? &layer.up : nullptr, &input, &inner, spec_.activation};
  const int32_t tile = tile_rows(rows_, input), tiles = ceil_div(rows_, tile);
  const int32_t units = ceil_div(spec_.intermediate_size, kGatedUnit);
  const auto work = [&](int from, int to) {
    while (from < to) {
      const int32_t row_begin = from / units * tile, first = from % units, together = std::min(to - from, units - first);
      operators_.gated(job, first, first + together, row_begin, std::min(row_begin + tile, rows_));
      from += together;
    }
  };
  team_.share<true>(tiles * units, 1, work);
  watch_.mark(Stage::GATED);
  wait();
  project(Stage::DOWN, layer.down, inner, layer.mlp_out_norm);
}

void StepWorker::output() {
  const Linear& head = decoder_.weights_.head;
  const Activations input = normed(decoder_.weights_.norm, form_of(head.layout));
  const LinearJob job{&head, &input, logits_, spec_.vocab_size, spec_.logit_factor, false};
  if (decoder_.screened_) return screen(job);
  linears(Stage::LOGITS, &job, 1, [&](const LinearJob&, int begin, int end, int row_begin, int row_end) {
    operators_.linear(job, begin, end, row_begin, row_end);
    const int32_t first = begin * kRowBlock, cols = std::min(end * kRowBlock, spec_.vocab_size) - first;
    if (spec_.logit_soft_cap != 0.0f) {
      operators_.soft_cap(logits_ + first, spec_.vocab_size, cols, spec_.logit_soft_cap, row_begin, row_end);
    }
    if (decoder_.best_only_) note(first, cols, row_begin, row_end);
  });
}

void StepWorker::note(int32_t first, int32_t cols, int32_t row_begin, int32_t row_end) {
  for (int32_t row = row_begin; row < row_end; ++row) {
    const float* logits = logits_ + int64_t{row} * spec_.vocab_size + first;
    Best& best = own_.best[static_cast<size_t>(row)];
    const float greatest = operators_.sampling.maxima(logits, cols, own_.maxima.data());
    if (greatest < best.value) continue;
    best.see(greatest, first + first_best(logits, cols, own_.maxima.data(), greatest));
  }
}

void StepWorker::screen(const LinearJob& job) {
  auto& peaks = decoder_.peaks_[static_cast<size_t>(team_.index())];
  LinearJob bounds = job;
  if (decoder_.weights_.screen.present()) bounds.weight = &decoder_.weights_.screen;
  linears(Stage::LOGITS, &bounds, 1, [&](const LinearJob&, int begin, int end, int row_begin, int row_end) {
    operators_.bound(bounds, peaks.data() + row_begin, begin, end, row_begin, row_end);
  });
  // The block with the greatest bound gives a result that most others' bounds do not reach.
  for (int32_t row = 0; row < rows_; ++row) {
    Peak peak{-INFINITY, 0};
    for (const auto& others : decoder_.peaks_) {
      const Peak& other = others[static_cast<size_t>(row)];
      if (other.bound > peak.bound) peak = other;
    }
    operators_.settle(job, &own_.best[static_cast<size_t>(row)], peak.block, peak.block + 1, row, row + 1);
  }
  linears(Stage::LOGITS, &job, 1, [&](const LinearJob&, int begin, int end, int row_begin, int row_end) {
    decoder_.computed_ += operators_.settle(job, own_.best.data() + row_begin, begin, end, row_begin, row_end);
  });
}

}  // namespace inferloom
