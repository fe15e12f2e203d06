// The threads of one parallel region: a barrier, and work that is divided among them.
//
// Work of a stage is cut into units. Every thread begins with its own contiguous share, so that it reads memory in
// order, and helps the others once it is through: a thread whose core was taken away for a while then delays the stage
// by one piece of work, not by its share.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <sched.h>

#include "cpu.h"

namespace inferloom {

// Any number of threads may take part; each says how many there are. Waiting spins for some microseconds, then offers
// the core to others between two looks, and after about a millisecond sleeps: models share the cores with each other
// and with the gateway.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1);  // sequentially consistent, as is the sleepers' count: one of the two sees the other
      if (sleepers_.load() != 0) wake();
      return;
    }
    for (int i = 0; i < kSpins; ++i) {
      if (passed(phase)) return;
      cpu_pause();
    }
    for (int i = 0; i < kYields; ++i) {
      if (passed(phase)) return;
      sched_yield();
    }
    sleepers_.fetch_add(1);
    while (phase_.load() == phase) sleep(phase);
    sleepers_.fetch_sub(1);
  }

 private:
  static constexpr int kSpins = 200;    // of about 20 … 50 ns
  static constexpr int kYields = 2000;  // of about 0.5 µs where nobody else wants the core

  bool passed(uint32_t phase) const { return phase_.load(std::memory_order_acquire) != phase; }

#if defined(__linux__)
  void sleep(uint32_t phase) { syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(uint32_t) { sched_yield(); }
  void wake() {}
#endif

  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
};

// What the threads share; outlives the regions. At most one region uses it at a time.
class Team {
 public:
  explicit Team(int most) : most_(most), taken_(new Taken[2 * static_cast<size_t>(most)]) {}

  int most() const { return most_; }

  // Before each region, by the thread that opens it.
  void prepare() {
    for (int i = 0; i < 2 * most_; ++i) taken_[i].units.store(0, std::memory_order_relaxed);
  }

  // One thread's part in a region. All threads must go through the same sequence of `share` and `wait`.
  class Member {
   public:
    Member(Team& team, int index, int threads) : team_(team), index_(index), threads_(threads) {}

    int index() const { return index_; }
    int threads() const { return threads_; }

    // All that was done before is seen by everyone after.
    void wait() {
      // Nobody touches the next stage's counters: those who did have passed the barrier before this stage.
      counter(parity_ ^ 1, index_).store(0, std::memory_order_relaxed);
      team_.barrier_.wait(threads_);
      parity_ ^= 1;
    }

    // Calls work(begin, end) for pieces of at most `grain` units until all of [0, units) is taken; at most once between
    // two waits. Returns when nothing is left to take, while others may still be computing.
    //
    // HALVES: of its own share a thread takes half of what is left at a time, where a piece costs something by itself.
    template <bool HALVES = false, class Work>
    void share(int units, int grain, Work&& work) {
      if (threads_ == 1) {
        for (int begin = 0; begin < units; begin += grain) work(begin, std::min(begin + grain, units));
        return;
      }
      for (int i = 0; i < threads_; ++i) {
        const int owner = index_ + i < threads_ ? index_ + i : index_ + i - threads_;
        const int first = bound(units, owner), last = bound(units, owner + 1);
        std::atomic<int>& taken = counter(parity_, owner);
        for (int left; (left = last - first - taken.load(std::memory_order_relaxed)) > 0;) {
          const int count = HALVES && i == 0 ? std::max(grain, left / 2) : grain;
          const int begin = first + taken.fetch_add(count, std::memory_order_relaxed);
          if (begin >= last) break;
          work(begin, std::min(begin + count, last));
        }
      }
    }

   private:
    int bound(int units, int thread) const { return static_cast<int>(int64_t{units} * thread / threads_); }
    std::atomic<int>& counter(int parity, int thread) { return team_.taken_[parity * team_.most_ + thread].units; }

    Team& team_;
    int index_, threads_;
    int parity_ = 0;
  };

 private:
  struct alignas(64) Taken {
    std::atomic<int> units{0};  // of this thread's share
  };

  int most_;
  std::unique_ptr<Taken[]> taken_;
  Barrier barrier_;
};

}  // namespace inferloom
