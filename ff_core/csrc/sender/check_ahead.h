// Checks the chunks of a complete slot in threads of its own, a little ahead of whoever sends them. A damaged slot is its
// holder's to report. Sending one chunk over one stream takes about as long as checking several.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "slots/slot.h"

namespace ff {

class CheckAhead {
 public:
  // The first `chunks` of them, by this many threads. Slot and record must stay until this is gone. A slot without
  // checksums is good.
  CheckAhead(const SlotView& slot, const SlotRecord& record, uint32_t chunks, size_t threads);
  ~CheckAhead();  // stops and joins
  CheckAhead(const CheckAhead&) = delete;
  CheckAhead& operator=(const CheckAhead&) = delete;

  // Returns when `chunk`, which grows from call to call, is known to be good. FF_ECORRUPT: it is not.
  void await(uint32_t chunk);

 private:
  static constexpr uint32_t kAhead = 8;  // chunks; further ahead they would be out of the cache again
  void run() noexcept;
  void stop() noexcept;  // and join

  const SlotView& slot_;
  const SlotRecord& record_;
  const uint32_t chunks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t wanted_ = 0;
  uint32_t next_ = 0;        // nobody checks it yet
  uint32_t good_ = 0;        // all before are good
  std::vector<bool> found_;  // good ones
  bool stopping_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;  // last
};

}  // namespace ff
