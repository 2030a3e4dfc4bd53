// Decides how many of a connection's streams carry versions: arithmetic on what is measured, so that it can be tested.
//
// Every stream costs a thread at either end, and where the memory, the network or the copy is the limit some of them bring
// nothing. So the first versions try all of them, half of them, a quarter and so on. The fewest that are nearly as fast as
// the best stay. Single measurements lie, so the better of two counts. What was chosen is given up only when many versions
// in a row go at quite another speed, and the more seldom the more often that has happened.
//
//   learning --(tried down to one, or to one that is hopeless)--> settled --(another speed, in a row)--> learning
//
// Only large versions at full speed say something.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ff {

class StreamTuner {
 public:
  static constexpr uint64_t kLeastBytes = 16 << 20;  // of a version that is measured
  static constexpr int kWarm = 2;      // versions not measured at first: slots are touched, windows open
  static constexpr int kSamples = 2;   // of each number of streams
  static constexpr double kNearly = 0.9, kHopeless = 0.75;  // of the best speed
  static constexpr double kSlower = 0.6, kFaster = 1.6;     // than what was chosen had: another speed
  static constexpr int kInARow = 8;
  static constexpr int kHold = 64, kLongestHold = 4096;     // versions that a choice stays at least

  // most: how many there are.  fixed: all of them, always.
  StreamTuner(size_t most, bool fixed) : most_(most), fixed_(fixed || most == 1), trying_(most), settled_(fixed_) {}

  // For a version that begins now.
  size_t streams() const { return settled_ || !held_back_ ? trying_ : most_; }
  bool settled() const { return settled_; }

  // The pacer held the newest version back, and perhaps will the next one: it says nothing, and is no time to try things.
  void held_back() { held_back_ = true; }

  // The newest version went at full speed: `bytes` over streams() of then, in so long.
  void sent(uint64_t bytes, int64_t ns) {
    if (fixed_ || bytes < kLeastBytes || ns <= 0) return;
    if (held_back_ && !settled_) {  // it was over all of them
      held_back_ = false;
      return;
    }
    const double speed = static_cast<double>(bytes) / static_cast<double>(ns);
    if (settled_) {
      watch(speed);
    } else {
      learn(speed);
    }
  }

 private:
  struct Tried {
    size_t streams;
    double speed;
  };

  void learn(double speed) {
    if (warm_ > 0) {
      --warm_;
      return;
    }
    better_ = std::max(better_, speed);
    if (++samples_ < kSamples) return;
    tried_.push_back({trying_, better_});
    double best = 0;
    for (const Tried& one : tried_) best = std::max(best, one.speed);
    const bool hopeless = better_ < kHopeless * best;
    samples_ = 0;
    better_ = 0;
    if (trying_ > 1 && !hopeless) {
      trying_ /= 2;
      return;
    }
    for (const Tried& one : tried_) {  // ever fewer
      if (one.speed < kNearly * best) continue;
      trying_ = one.streams;
      chosen_speed_ = one.speed;
    }
    tried_.clear();
    settled_ = true;
    held_ = in_a_row_ = 0;
  }

  void watch(double speed) {
    const bool other = speed < kSlower * chosen_speed_ || speed > kFaster * chosen_speed_;
    in_a_row_ = other ? in_a_row_ + 1 : 0;
    if (++held_ < hold_ || in_a_row_ < kInARow) return;
    hold_ = std::min(2 * hold_, kLongestHold);
    settled_ = held_back_ = false;
    trying_ = most_;
  }

  const size_t most_;
  const bool fixed_;
  size_t trying_;  // and what was chosen, once settled
  bool settled_;
  bool held_back_ = false;
  int warm_ = kWarm;
  int samples_ = 0;
  double better_ = 0;
  std::vector<Tried> tried_;
  double chosen_speed_ = 0;
  int held_ = 0, hold_ = kHold, in_a_row_ = 0;
};

}  // namespace ff
