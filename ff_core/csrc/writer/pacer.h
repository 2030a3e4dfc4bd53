// Decides when the next piece of a version may leave: arithmetic on times that are given, so that it can be tested.
//
// Three rules, in this order. A bandwidth limit is never exceeded. A version with a deadline is sent evenly, only as
// fast as it must be, and not while the training's collectives need network and CPU (it *yields*). A deadline in danger
// overrides both evenness and yield. Without a deadline a version goes as fast as it can.
//
// What "fast as it can" is, is learned from versions that were sent that way, until acknowledged: the first ones, and
// one after every missed deadline. (Single sends tell nothing: they end in the socket's buffer.)
#pragma once
#include <algorithm>
#include <cstdint>

namespace ff {

class Pacer {
 public:
  enum class Why { kGo, kLimit, kPace, kYield };
  struct Verdict {
    Why why;
    int64_t until_ns;  // ask again then, at the latest; kGo: send now
  };

  explicit Pacer(uint64_t limit_bytes_per_s) : limit_(limit_bytes_per_s) {}

  // Nothing will ever be held back before the next begin().
  bool free() const { return limit_ == 0 && deadline_ == 0; }

  // Pieces that big keep the stream smooth: about 10 ms of the limit's worth, at least a page, at most a megabyte.
  uint64_t piece() const {
    if (free()) return UINT64_MAX;
    if (limit_ == 0) return 256 * 1024;
    return std::clamp<uint64_t>(limit_ / 100, 4096, 1 << 20);
  }

  // A version of `bytes` is to be acknowledged by `deadline_ns`; 0: as soon as possible.
  void begin(uint64_t bytes, int64_t deadline_ns, int64_t now) {
    left_ = bytes;
    deadline_ = samples_ < kSamples ? 0 : deadline_ns;
    measured_ = deadline_ == 0 ? bytes : 0;
    begun_ = now;
    next_even_ = now;
  }

  // training_busy(): asked only if it matters.
  template <class Busy>
  Verdict ask(int64_t now, Busy&& training_busy) const {
    if (now < next_allowed_) return {Why::kLimit, next_allowed_};
    if (deadline_ == 0 || left_ == 0) return {Why::kGo, now};
    const int64_t danger = deadline_ - 2 * need(left_);
    if (now >= danger) return {Why::kGo, now};
    if (training_busy()) return {Why::kYield, std::min(now + kLook, danger)};
    if (now < next_even_) return {Why::kPace, std::min(next_even_, danger)};
    return {Why::kGo, now};
  }

  void sent(uint64_t bytes, int64_t started) {
    // Unused time is not saved up: an idle stream does not earn a burst.
    if (limit_ > 0) next_allowed_ = started + in_ns(bytes, static_cast<double>(limit_));
    if (deadline_ != 0 && left_ > 0) {
      const int64_t span = std::max<int64_t>(0, deadline_ - 2 * need(left_) - started);
      const double share = static_cast<double>(std::min(bytes, left_)) / static_cast<double>(left_);
      next_even_ = started + static_cast<int64_t>(static_cast<double>(span) * share);
    }
    left_ -= std::min(bytes, left_);
  }

  // The newest version is acknowledged. missed: after its deadline.
  void acknowledged(int64_t now, bool missed) {
    if (measured_ > 0 && now > begun_) {
      const double speed = static_cast<double>(measured_) * 1e9 / static_cast<double>(now - begun_);
      speed_ = speed_ == 0 ? speed : (speed_ + speed) / 2;
      samples_ = std::min(samples_ + 1, kSamples);
    }
    measured_ = 0;
    if (missed) samples_ = std::min(samples_, kSamples - 1);
  }

 private:
  static constexpr int kSamples = 3;           // versions at full speed before the first paced one
  static constexpr int64_t kLook = 500 * 1000; // while it yields, it looks this often whether the collective is over

  static int64_t in_ns(uint64_t bytes, double per_s) {
    return static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / per_s);
  }
  int64_t need(uint64_t bytes) const { return in_ns(bytes, std::max(speed_, 1.0)); }

  const uint64_t limit_;
  int64_t next_allowed_ = 0;
  // The version being sent.
  uint64_t left_ = 0;
  int64_t deadline_ = 0;
  int64_t begun_ = 0;
  int64_t next_even_ = 0;
  uint64_t measured_ = 0;
  // Learned.
  double speed_ = 0;  // bytes per second
  int samples_ = 0;
};

}  // namespace ff
