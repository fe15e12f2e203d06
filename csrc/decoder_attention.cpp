// How the attention of a step is cut into pieces. A row's pieces follow from its own position alone, so that its sums are the same bits
// whatever else is in the batch and however a prompt is divided into steps.
#include <algorithm>

#include "decoder.h"

namespace inferloom {

namespace {

// Pieces for each thread below which the splits of a long context go to several threads.
constexpr int kPiecesPerThread = 4;

// Key positions that a query at `position` may see.
int32_t first_key(int32_t position, int32_t window) { return window > 0 ? std::max(0, position - window + 1) : 0; }

int32_t splits_between(int32_t first, int32_t last) { return last / kKeySplit - first / kKeySplit + 1; }

struct Tile {
  const SequenceView* sequence;
  int32_t row, rows;
  int32_t key_begin, key_end;
  int32_t splits;
};

// Rows of a tile see the same splits: one that begins or ends elsewhere starts a tile of its own.
void cut(const SequenceView& sequence, int32_t window, const uint8_t* wanted, std::vector<Tile>& tiles) {
  const int32_t past = sequence.context - sequence.rows;
  for (int32_t row = 0; row < sequence.rows;) {
    const int32_t begin = first_key(past + row, window);
    int32_t rows = 1;
    while (row + rows < sequence.rows && rows < kAttentionRows && (past + row + rows) / kKeySplit == (past + row) / kKeySplit &&
           first_key(past + row + rows, window) / kKeySplit == begin / kKeySplit) {
      ++rows;
    }
    const uint8_t* asked = wanted ? wanted + sequence.first_row + row : nullptr;
    if (!asked || std::find(asked, asked + rows, uint8_t{1}) != asked + rows) {
      const int32_t last = past + row + rows - 1;
      tiles.push_back({&sequence, row, rows, begin / kPageSize * kPageSize, last + 1, splits_between(begin, last)});
    }
    row += rows;
  }
}

}  // namespace

void AttentionPlan::make(const std::vector<SequenceView>& sequences, const DecoderSpec& spec, int32_t window, const uint8_t* wanted,
                         int threads) {
  shares.clear();
  joins.clear();
  shared_floats = private_floats = 0;
  std::vector<Tile> tiles;
  for (const SequenceView& sequence : sequences) cut(sequence, window, wanted, tiles);
  const bool enough = tiles.size() * static_cast<size_t>(spec.kv_heads) >= static_cast<size_t>(threads) * kPiecesPerThread;
  const int64_t group = spec.heads / spec.kv_heads;
  const auto floats = [&](const Tile& tile) { return tile.rows * group * (spec.head_dim + 2); };

  // Of one sequence head by head: its tiles read the same keys and values.
  for (size_t first = 0, next = 0; first < tiles.size(); first = next) {
    while (next < tiles.size() && tiles[next].sequence == tiles[first].sequence) ++next;
    for (int32_t head = 0; head < spec.kv_heads; ++head) {
      for (size_t i = first; i < next; ++i) {
        const Tile& tile = tiles[i];
        const AttentionUnit whole{tile.sequence, tile.row, tile.rows, head, tile.key_begin, tile.key_end, nullptr};
        if (tile.splits == 1 || enough || threads == 1) {
          shares.push_back({whole, tile.splits, -1});
          if (tile.splits > 1) private_floats = std::max(private_floats, tile.splits * floats(tile));
          continue;
        }
        joins.push_back({whole, tile.splits, shared_floats});
        for (int32_t split = 0; split < tile.splits; ++split) {
          AttentionUnit part = whole;
          const int32_t origin = (tile.key_begin / kKeySplit + split) * kKeySplit;
          part.key_begin = std::max(tile.key_begin, origin);
          part.key_end = std::min(tile.key_end, origin + kKeySplit);
          shares.push_back({part, 1, shared_floats});
          shared_floats += floats(tile);
        }
      }
    }
  }
}

}  // namespace inferloom
