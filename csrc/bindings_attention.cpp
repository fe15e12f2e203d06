// Attention for Python as `bindings_operators.cpp` has the other operators: the KV pool, what writes it and what reads
// it.
#include <nanobind/stl/vector.h>

#include <vector>

#include "bindings.h"
#include "buffers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inferloom {

namespace {

KvPool make_pool(Address base, int64_t page_stride, int type, int kv_heads, int head_dim) {
  require(type == 0 || type == 1, "a KV pool is 0 (bfloat16) or 1 (int8)");
  require(kv_heads > 0 && head_dim > 0 && head_dim % 16 == 0, "head_dim must be a multiple of 16");
  require(base % 64 == 0, "a KV pool begins at a multiple of 64 bytes");
  const KvType kv_type = static_cast<KvType>(type);
  require(page_stride >= static_cast<int64_t>(kv_page_bytes(kv_type, kv_heads, head_dim)), "pages overlap");
  return KvPool{at<uint8_t>(base), page_stride, kv_type, kv_heads, head_dim};
}

void heads(Address qkv, int64_t stride, int rows, Address q_norm, Address k_norm, float eps, Address cos_sin,
           int rotary, int query_heads, const KvPool& pool, Address positions, Address pages) {
  require(query_heads > 0 && stride >= int64_t{query_heads + 2 * pool.kv_heads} * pool.head_dim, "rows overlap");
  require(rotary >= 0 && rotary <= pool.head_dim && rotary % 2 == 0, "the rotated part is an even share of a head");
  HeadJob job{};
  job.qkv = at<float>(qkv);
  job.stride = stride;
  job.q_norm = at<const float>(q_norm);
  job.k_norm = at<const float>(k_norm);
  job.eps = eps;
  job.cos_sin = at<const float>(cos_sin);
  job.rotary = rotary;
  job.heads = query_heads;
  job.kv_heads = pool.kv_heads;
  job.head_dim = pool.head_dim;
  // One thread: rows of one page would otherwise be written by several at once (two positions share a word of the
  // values).
  table().heads(job, pool, at<const int32_t>(positions), at<const int32_t>(pages), 0, rows);
}

AttentionSpec make_attention(int heads, int kv_heads, int head_dim, float scale, float cap, int window, Address sinks,
                             Address mask_runs, Address mask_starts) {
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv_heads");
  require((mask_runs == 0) == (mask_starts == 0), "a mask has runs and starts");
  AttentionSpec spec{};
  spec.heads = heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.scale = scale;
  spec.soft_cap = cap;
  spec.window = window;
  spec.sinks = at<const float>(sinks);
  spec.mask_runs = at<const int32_t>(mask_runs);
  spec.mask_starts = at<const int32_t>(mask_starts);
  return spec;
}

// One tile of query rows with one key-value head, its keys cut at multiples of kKeySplit.
struct Tile {
  AttentionUnit unit;
  int splits;
};

std::vector<Tile> tiles_of(const AttentionSpec& spec, const std::vector<SequenceView>& sequences) {
  std::vector<Tile> tiles;
  for (const SequenceView& sequence : sequences) {
    for (int row = 0; row < sequence.rows; row += kAttentionRows) {
      const int rows = std::min(kAttentionRows, sequence.rows - row);
      const int first = sequence.context - sequence.rows + row, end = first + rows;
      const int begin = spec.window > 0 ? std::max(0, first - spec.window + 1) : 0;
      const int splits = (end + kKeySplit - 1) / kKeySplit - begin / kKeySplit;
      for (int head = 0; head < spec.kv_heads; ++head) {
        tiles.push_back({AttentionUnit{&sequence, row, rows, head, begin, end, nullptr}, splits});
      }
    }
  }
  return tiles;
}

// Floats that the splits of the tiles need at most.
size_t partial_floats(const AttentionSpec& spec, const std::vector<Tile>& tiles) {
  size_t most = 0;
  for (const Tile& tile : tiles) {
    const size_t queries = static_cast<size_t>(tile.unit.rows) * static_cast<size_t>(spec.heads / spec.kv_heads);
    if (tile.splits > 1)
      most = std::max(most, queries * static_cast<size_t>(spec.head_dim + 2) * static_cast<size_t>(tile.splits));
  }
  return (most + 15) / 16 * 16;
}

// Where queries come from and results go to.
struct AttentionRows {
  const float* q;
  int64_t q_stride;
  float* output;
  int64_t output_stride;
};

void attend_tile(const Operators& ops, const AttentionSpec& spec, const KvPool& pool, const Tile& tile,
                 const AttentionRows& rows, float* partials, float* scratch) {
  if (tile.splits == 1)
    return ops.attend(spec, pool, tile.unit, rows.q, rows.q_stride, rows.output, rows.output_stride, scratch);
  const int64_t part = int64_t{tile.unit.rows} * (spec.heads / spec.kv_heads) * (spec.head_dim + 2);
  AttentionUnit unit = tile.unit;
  for (int split = 0; split < tile.splits; ++split) {
    const int base = (tile.unit.key_begin / kKeySplit + split) * kKeySplit;
    unit.key_begin = std::max(tile.unit.key_begin, base);
    unit.key_end = std::min(tile.unit.key_end, base + kKeySplit);
    unit.partial = partials + part * split;
    ops.attend(spec, pool, unit, rows.q, rows.q_stride, rows.output, rows.output_stride, scratch);
  }
  ops.merge(spec, tile.unit, partials, tile.splits, rows.output, rows.output_stride);
}

void attend(const AttentionSpec& spec, const KvPool& pool, const std::vector<int32_t>& starts,
            const std::vector<int32_t>& contexts, const std::vector<int32_t>& page_starts, Address page_tables,
            Address q, int64_t q_stride, Address output, int64_t output_stride) {
  require(starts.size() == contexts.size() + 1 && page_starts.size() == starts.size(),
          "starts, contexts and page_starts disagree");
  require(spec.kv_heads == pool.kv_heads && spec.head_dim == pool.head_dim, "the pool belongs to other heads");
  const int64_t width = int64_t{spec.heads} * spec.head_dim;
  require(q_stride >= width && output_stride >= width, "rows overlap");
  std::vector<SequenceView> sequences;
  for (size_t i = 0; i < contexts.size(); ++i) {
    const int rows = starts[i + 1] - starts[i];
    require(rows >= 1 && contexts[i] >= rows, "a sequence has at least one row, and its context holds its rows");
    require((page_starts[i + 1] - page_starts[i]) * kPageSize >= contexts[i], "a sequence has too few pages");
    sequences.push_back({starts[i], rows, contexts[i], at<const int32_t>(page_tables) + page_starts[i]});
  }
  const std::vector<Tile> tiles = tiles_of(spec, sequences);
  const int units = static_cast<int>(tiles.size());
  const size_t partials = partial_floats(spec, tiles);
  const size_t each = partials + (attention_scratch(spec) + 15) / 16 * 16;
  Buffer memory;
  float* floats = memory.reserve_of<float>(each * static_cast<size_t>(threads_for(units)));
  const AttentionRows rows{at<const float>(q), q_stride, at<float>(output), output_stride};
  divide(units, [&](const Operators& ops, int begin, int end) {
    float* mine = floats + each * static_cast<size_t>(omp_get_thread_num());
    for (int i = begin; i < end; ++i) {
      attend_tile(ops, spec, pool, tiles[static_cast<size_t>(i)], rows, mine, mine + partials);
    }
  });
}

}  // namespace

void bind_attention(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<KvPool>(module, "KvPool", "Pages of one layer: type 0 bfloat16, 1 int8; page_stride in bytes.")
      .def(
          "__init__",
          [](KvPool* self, Address base, int64_t page_stride, int type, int kv_heads, int head_dim) {
            new (self) KvPool(make_pool(base, page_stride, type, kv_heads, head_dim));
          },
          "base"_a, "page_stride"_a, "type"_a, "kv_heads"_a, "head_dim"_a);
  nb::class_<AttentionSpec>(module, "AttentionSpec",
                            "One layer's attention; 0 where there is no cap, window, sinks or mask.")
      .def(
          "__init__",
          [](AttentionSpec* self, int heads, int kv_heads, int head_dim, float scale, float cap, int window,
             Address sinks, Address mask_runs, Address mask_starts) {
            new (self) AttentionSpec(
                make_attention(heads, kv_heads, head_dim, scale, cap, window, sinks, mask_runs, mask_starts));
          },
          "heads"_a, "kv_heads"_a, "head_dim"_a, "scale"_a, "soft_cap"_a = 0, "window"_a = 0, "sinks"_a = 0,
          "mask_runs"_a = 0, "mask_starts"_a = 0);
  module.def(
      "kv_page_bytes",
      [](int type, int kv_heads, int head_dim) {
        require(type == 0 || type == 1, "a KV pool is 0 (bfloat16) or 1 (int8)");
        return kv_page_bytes(static_cast<KvType>(type), kv_heads, head_dim);
      },
      "type"_a, "kv_heads"_a, "head_dim"_a, "Bytes of one page of one layer.");
  module.def("heads", &heads, "qkv"_a, "stride"_a, "rows"_a, "q_norm"_a, "k_norm"_a, "eps"_a, "cos_sin"_a, "rotary"_a,
             "heads"_a, "pool"_a, "positions"_a, "pages"_a, Released(),
             "Normalise and rotate queries and keys in place, write keys and values to their pages.");
  module.def("attend", &attend, "spec"_a, "pool"_a, "starts"_a, "contexts"_a, "page_starts"_a, "page_tables"_a, "q"_a,
             "q_stride"_a, "output"_a, "output_stride"_a, Released(),
             "Paged causal attention of a ragged batch; page_tables is an address of int32.");
}

}  // namespace inferloom
