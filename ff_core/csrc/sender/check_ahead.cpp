#include "sender/check_ahead.h"

#include "base/thread.h"

namespace ff {

CheckAhead::CheckAhead(const SlotView& slot, const SlotRecord& record, uint32_t chunks)
    : slot_(slot), record_(record), chunks_(chunks) {
  thread_ = start_thread("ff-check", [this] { run(); });
}

CheckAhead::~CheckAhead() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
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
  while (good_ < chunks_) {
    changed_.wait(lock, [this] { return stopping_ || good_ < wanted_ + kAhead; });
    if (stopping_) return;
    lock.unlock();
    std::exception_ptr failure;
    try {
      slot_.verify_chunk(record_, good_);  // read here without the lock: nobody else writes it
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    failure_ = failure;
    if (failure == nullptr) ++good_;
    changed_.notify_all();
    if (failure != nullptr) return;
  }
}

}  // namespace ff
