// How the attention of a step is cut into pieces. The operator's sums do not depend on it.
#include <algorithm>

#include "decoder.h"

namespace inferloom {

namespace {

// Pieces for each thread below which the splits of a long context go to several threads.
constexpr int kPiecesPerThread = 4;

// Query rows of a sequence that are computed together, and the keys that at least one of them sees.
struct Tile {
  const SequenceView* sequence;
  int32_t row, rows;
  int32_t key_begin, key_end;

  int32_t first_split() const { return key_begin / kKeySplit; }
  int32_t splits() const { return (key_end - 1) / kKeySplit - first_split() + 1; }
};

void cut(const SequenceView& sequence, int32_t window, const uint8_t* wanted, std::vector<Tile>& tiles) {
  const int32_t past = sequence.context - sequence.rows;
  for (int32_t row = 0; row < sequence.rows; row += kAttentionRows) {
    const int32_t rows = std::min<int32_t>(kAttentionRows, sequence.rows - row);
    const uint8_t* asked = wanted ? wanted + sequence.first_row + row : nullptr;
    if (asked && std::find(asked, asked + rows, uint8_t{1}) == asked + rows) continue;
    const int32_t key_begin = window > 0 ? std::max(0, past + row - window + 1) : 0;
    tiles.push_back({&sequence, row, rows, key_begin, past + row + rows});
  }
}

}  // namespace

void AttentionPlan::make(const std::vector<SequenceView>& sequences, const DecoderSpec& spec, int32_t window,
                         const uint8_t* wanted, int threads) {
  shares.clear();
  joins.clear();
  partial_floats = 0;
  std::vector<Tile> tiles;
  for (const SequenceView& sequence : sequences) cut(sequence, window, wanted, tiles);
  const size_t pieces = tiles.size() * static_cast<size_t>(spec.kv_heads);
  const bool whole = threads == 1 || pieces >= static_cast<size_t>(threads) * kPiecesPerThread;

  // Of one sequence head by head: its tiles read the same keys and values.
  for (size_t first = 0, next = 0; first < tiles.size(); first = next) {
    while (next < tiles.size() && tiles[next].sequence == tiles[first].sequence) ++next;
    for (int32_t head = 0; head < spec.kv_heads; ++head) {
      for (size_t i = first; i < next; ++i) {
        const Tile& tile = tiles[i];
        const AttentionUnit unit{tile.sequence, tile.row, tile.rows, head, tile.key_begin, tile.key_end, nullptr};
        if (whole || tile.splits() == 1) {
          shares.push_back({unit, -1});
          continue;
        }
        joins.push_back({unit, tile.splits(), partial_floats});
        for (int32_t split = 0; split < tile.splits(); ++split) {
          AttentionUnit part = unit;
          const int32_t origin = (tile.first_split() + split) * kKeySplit;
          part.key_begin = std::max(tile.key_begin, origin);
          part.key_end = std::min(tile.key_end, origin + kKeySplit);
          shares.push_back({part, partial_floats});
          partial_floats += int64_t{tile.rows} * (spec.heads / spec.kv_heads) * (spec.head_dim + 2);
        }
      }
    }
  }
  for (size_t i = 1; i < shares.size(); ++i) shares[i - 1].unit.next = &shares[i].unit;
  const auto is_whole = [](const Tile& tile) { return tile.rows == tile.sequence->rows; };
  by_head = joins.empty() && tiles.size() == sequences.size() && std::all_of(tiles.begin(), tiles.end(), is_whole);
}

}  // namespace inferloom
