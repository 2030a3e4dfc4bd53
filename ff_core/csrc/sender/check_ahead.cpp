#include "sender/check_ahead.h"

#include "base/thread.h"

namespace ff {

CheckAhead::CheckAhead(const SlotView& slot, const SlotRecord& record, uint32_t chunks, size_t threads)
    : slot_(slot), record_(record), chunks_(chunks), found_(chunks, false) {
  try {
    for (size_t thread = 0; thread < threads; ++thread) threads_.push_back(start_thread("ff-check", [this] { run(); }));
  } catch (...) {
    stop();
    throw;
  }
}

CheckAhead::~CheckAhead() {
  stop();
}

void CheckAhead::stop() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void CheckAhead::await(uint32_t chunk) {
  std::unique_lock<std::mutex> lock(mutex_);
  wanted_ = chunk;
  changed_.notify_all();
  changed_.wait(lock, [&] { return good_ > chunk || failure_ != nullptr; });
  if (good_ <= chunk) std::rethrow_exception(failure_);
}

void CheckAhead::run() noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || next_ >= chunks_ || next_ < wanted_ + kAhead; });
    if (stopping_ || next_ >= chunks_) return;
    const uint32_t chunk = next_++;
    lock.unlock();
    std::exception_ptr failure;
    try {
      slot_.verify_chunk(record_, chunk);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure != nullptr) {
      if (failure_ == nullptr) failure_ = failure;
      stopping_ = true;  // those before it are checked to their end, so that good_ is what can be sent
    } else {
      found_[chunk] = true;
    }
    while (good_ < chunks_ && found_[good_]) ++good_;
    changed_.notify_all();
  }
}

}  // namespace ff
