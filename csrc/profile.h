// Where the time of steps goes, stage by stage and thread by thread.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

namespace inferloom {

enum class Stage : int { EMBED, NORM, QKV, HEADS, ATTENTION, CONVERT, OUTPUT, GATED, DOWN, LOGITS, WAIT };
constexpr int kStages = 11;
constexpr const char* kStageNames[kStages] = {"embed",  "norm",  "qkv",  "heads",  "attention", "convert",
                                              "output", "gated", "down", "logits", "wait"};

class Profile {
 public:
  using Clock = std::chrono::steady_clock;
  struct alignas(64) Times {
    std::array<int64_t, kStages> nanoseconds{};
  };

  bool enabled = false;  // costs some 20 ns a stage and thread
  int64_t steps = 0;
  std::vector<Times> threads;

  void clear() {
    steps = 0;
    for (Times& times : threads) times = {};
  }

  // One thread's clock: `mark` charges the time since the last one to a stage.
  class Watch {
   public:
    Watch(Profile& profile, int thread)
        : times_(profile.enabled ? &profile.threads[static_cast<size_t>(thread)] : nullptr),
          last_(times_ ? Clock::now() : Clock::time_point{}) {}

    void mark(Stage stage) {
      if (!times_) return;
      const Clock::time_point now = Clock::now();
      times_->nanoseconds[static_cast<size_t>(stage)] += std::chrono::nanoseconds(now - last_).count();
      last_ = now;
    }

   private:
    Times* times_;
    Clock::time_point last_;
  };
};

}  // namespace inferloom
