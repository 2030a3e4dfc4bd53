// Keeps a stream under a number of bytes per second: says how long to wait before the next piece.
#pragma once
#include <algorithm>
#include <cstdint>

namespace ff {

class Pacer {
 public:
  explicit Pacer(uint64_t bytes_per_s) : rate_(bytes_per_s) {}
  bool limited() const { return rate_ > 0; }

  // Pieces that big keep the stream smooth: about 10 ms worth, at least a page's and at most a megabyte.
  uint64_t piece() const {
    if (rate_ == 0) return UINT64_MAX;
    return std::clamp<uint64_t>(rate_ / 100, 4096, 1 << 20);
  }

  // Books `bytes` and returns the moment, in ns on the same clock as `now`, before which they must not be sent.
  // Unused time is not saved up: an idle stream does not earn a burst.
  int64_t book(uint64_t bytes, int64_t now) {
    if (rate_ == 0) return now;
    const int64_t start = std::max(next_, now);
    next_ = start + static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate_));
    return start;
  }

 private:
  uint64_t rate_;
  int64_t next_ = 0;
};

}  // namespace ff
