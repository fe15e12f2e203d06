// Fetching keys and values into the second-level cache before they are read: a running prefetch, a fixed distance ahead
// in the order in which a thread reads pages, on through the units that follow. Pages lie anywhere, and a unit of a
// decode is too short for the processor to find its pattern.
#pragma once
#include "../isa/simd.h"
#include "attention_buffers.h"
#include "kv_layout.h"

namespace inferloom {
namespace {

constexpr int kLine = 64;                   // bytes of a cache line
// Bytes: some microseconds of memory, and a part of a core's second-level cache.
constexpr int64_t kFetchAhead = 128 << 10;

// Where the keys of a unit begin: its first row sees the most of them.
inline int first_key(const AttentionSpec& spec, const AttentionUnit& unit) {
  const int seen = spec.window ? unit.sequence->context - unit.sequence->rows + unit.row + 1 - spec.window : 0;
  return seen > unit.key_begin ? seen : unit.key_begin;
}

inline int end_key(const AttentionUnit& unit) {
  const int seen = unit.sequence->context - unit.sequence->rows + unit.row + unit.rows;
  return seen < unit.key_end ? seen : unit.key_end;
}

inline const uint8_t* head_page(const KvPool& pool, const KvLayout& layout, const AttentionUnit& unit, int page) {
  return pool.base + unit.sequence->pages[page] * pool.page_stride + unit.kv_head * layout.head_bytes();
}

// Lines that wait to be fetched. Who reads something else asks for a few between two computations.
class FetchQueue {
 public:
  // Of page `page` of the unit, or of what comes in its place further on, all that is used. The later rows of a
  // sequence read what the first ones have brought.
  void add_after(const AttentionSpec& spec, const KvPool& pool, const KvLayout& layout, const AttentionUnit& unit,
                 int page) {
    const AttentionUnit* at = &unit;
    int number = page + static_cast<int>(kFetchAhead / layout.head_bytes());
    for (int last = last_page(*at); number > last; last = last_page(*at)) {
      number -= last + 1;
      at = at->next;
      if (!at) return;
      number += first_key(spec, *at) / kPageSize;
    }
    if (at->row == 0) add(head_page(pool, layout, *at, number), layout, end_key(*at) - number * kPageSize);
  }

  // Lines that can be taken at once, from where `next` points.
  struct Lines {
    const uint8_t* next;
    const uint8_t* end;
  };

  template <class S, int COUNT>
  SIMD_INLINE void fetch(Lines& lines) {
    if (lines.next >= lines.end) return;
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) S::prefetch_far(lines.next + i * kLine);
    lines.next += COUNT * kLine;
  }

  Lines& front() {
    while (lines_.next >= lines_.end && begin_ < end_) lines_ = waiting_[begin_++ % kMost];
    return lines_;
  }

  // What is left when nothing more is computed with the pages that it came with.
  template <class S>
  void flush() {
    while (front().next < lines_.end) fetch<S, 1>(lines_);
  }

 private:
  static constexpr int kMost = 2 * kBlockPages;  // segments of a block's pages

  static int last_page(const AttentionUnit& unit) { return (end_key(unit) - 1) / kPageSize; }

  void add(const uint8_t* head, const KvLayout& layout, int positions) {
    if (positions >= kPageSize) return push(head, layout.head_bytes());
    const int keys = (positions + kKeyLanes - 1) / kKeyLanes * kKeyLanes, values = (positions + 1) / 2 * 2;
    const int64_t width = layout.head_dim * layout.element_bytes();
    push(head, layout.keys() + keys * width);
    push(head + layout.values(), values * width);
  }

  void push(const uint8_t* begin, int64_t bytes) { waiting_[end_++ % kMost] = {begin, begin + bytes}; }

  Lines lines_{nullptr, nullptr};
  Lines waiting_[kMost];
  unsigned begin_ = 0, end_ = 0;
};

}  // namespace
}  // namespace inferloom
