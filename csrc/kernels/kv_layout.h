// Where a page of the KV pool keeps what: one layer's page of 32 tokens, for each key-value head in turn
//   BF16: keys | values, each 32 · D bfloat16
//   INT8: key scales | value scales, each 32 floats (one a position), then keys | values, each 32 · D int8
// keys:   [2 blocks of 16 positions][D / 2][16 positions][2]: two consecutive elements of a key side by side
// values: [16 pairs of positions][D][2]: two consecutive positions side by side
// An int8 element stands where the bfloat16 one would; its value is scale · element, symmetric in −127 … 127. D is a
// multiple of 16, so every part begins at a multiple of 64 bytes.
#pragma once
#include "../operators.h"

namespace inferloom {
namespace {  // not shared: a copy compiled for a wide instruction set must not serve the rest of the program

constexpr int kPagePairs = kPageSize / 2;
constexpr int kKeyLanes = 16;  // positions of a block of keys

struct KvLayout {
  int32_t head_dim;
  KvType type;

  constexpr int64_t element_bytes() const { return type == KvType::BF16 ? 2 : 1; }
  constexpr int64_t scale_bytes() const { return type == KvType::BF16 ? 0 : 2 * kPageSize * int64_t{4}; }
  constexpr int64_t keys() const { return scale_bytes(); }  // from the head's beginning
  constexpr int64_t values() const { return keys() + kPageSize * head_dim * element_bytes(); }
  constexpr int64_t key_scales() const { return 0; }
  constexpr int64_t value_scales() const { return kPageSize * int64_t{4}; }
  constexpr int64_t head_bytes() const { return values() + kPageSize * head_dim * element_bytes(); }

  // Of element i of a key, or of a value, at a position of the page, in elements.
  constexpr int64_t key_element(int position, int i) const {
    return (int64_t{position / kKeyLanes} * (head_dim / 2) + i / 2) * (2 * kKeyLanes) + position % kKeyLanes * 2 +
           i % 2;
  }
  constexpr int64_t value_element(int position, int i) const {
    return (int64_t{position / 2} * head_dim + i) * 2 + position % 2;
  }
};

}  // namespace
}  // namespace inferloom
