// Sending out of slots without copying into the kernel (MSG_ZEROCOPY; Linux 4.14, TCP): one socket's state.
//
// The kernel keeps the pages until the peer's kernel has acknowledged them, and then leaves a completion in the socket's
// error queue. It also says there when it had to copy after all (loopback, virtual pairs, adapters that cannot gather):
// then this was dearer than a plain send, and is given up for the socket. Hence one piece goes ahead as a trial, and
// nothing more this way until its completion is here. docs/wire_format.md says why a slot may be used again before that.
//
// The thread that sends and the one that waits for answers may use it at the same time.
#pragma once
#include <cstdint>
#include <deque>
#include <mutex>

namespace ff {

class ZeroCopy {
 public:
  static constexpr uint64_t kLeast = 64 * 1024;  // bytes; below, looking up pages costs more than copying

  explicit ZeroCopy(int fd);  // takes the socket as one that copies until enable()
  void enable();              // nothing happens where the kernel or the socket cannot

  bool wants(uint64_t bytes);  // whether a send of so many should be tried this way
  void sent(uint64_t bytes);   // it was
  bool refused(int error);     // it failed; true: send them the plain way instead
  void collect();              // completions that are there; never waits
  // The kernel says that sends `first` to `last`, counted from 0, are done. collect() calls it.
  void complete(uint32_t first, uint32_t last, bool copied);

  uint64_t take_bytes();  // sent without a copy since the last call; known when completed
  bool given_up();        // after a trial, or because the kernel refused
  uint64_t trials();      // sends this way

 private:
  enum class State { kOff, kUntried, kTrying, kOn, kGivenUp };
  struct Send {
    uint64_t bytes = 0;
    bool complete = false;
    bool copied = false;
  };
  // All of these under mutex_.
  void collect_locked();
  void complete_locked(uint32_t first, uint32_t last, bool copied);
  void settle();
  Send& at(uint32_t number);

  const int fd_;
  std::mutex mutex_;
  State state_ = State::kOff;
  std::deque<Send> sends_;            // from number first_ on: until complete, and before sent() if complete earlier
  uint32_t first_ = 0, next_ = 0;     // the oldest incomplete one, and the next sent(), as the kernel counts
  uint64_t bytes_ = 0;
  uint64_t trials_ = 0;
};

}  // namespace ff
