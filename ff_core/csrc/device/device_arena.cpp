#include "device/device_arena.h"

#include <chrono>
#include <utility>

#include "base/thread.h"
#include "slots/slot.h"

namespace ff {

DeviceArena::DeviceArena(std::unique_ptr<Device> device, int index, const ArenaView& arena)
    : device_(std::move(device)), index_(index), arena_(arena) {
  thread_ = start_thread("ff-pin", [this] { pin_all(); });
}

DeviceArena::~DeviceArena() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
  for (uint32_t slot = 0; slot < pinned_; ++slot) device_->unpin(payload(slot));
}

void* DeviceArena::payload(uint32_t slot) const {
  return SlotView(arena_, slot).payload();
}

void DeviceArena::pin_all() noexcept {
  const uint64_t bytes = (arena_.geometry().payload_bytes() + kPage - 1) / kPage * kPage;
  for (uint32_t slot = 0; bytes > 0 && slot < arena_.layout().slots; ++slot) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
    }
    std::unique_ptr<Error> failure;
    try {
      device_->pin(payload(slot), bytes);
    } catch (const Error& error) {
      failure = std::make_unique<Error>(error);
    } catch (const std::exception& error) {
      failure = std::make_unique<Error>(FF_EINTERNAL, error.what());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
    if (failure != nullptr) {
      failure_ = std::move(failure);
      return;
    }
    ++pinned_;
  }
}

bool DeviceArena::await_pinned(uint32_t slot, const std::atomic<bool>& cancelled) {
  if (arena_.geometry().payload_bytes() == 0) return true;
  std::unique_lock<std::mutex> lock(mutex_);
  while (pinned_ <= slot) {
    if (failure_ != nullptr) throw Error(*failure_);
    if (cancelled.load()) return false;
    changed_.wait_for(lock, std::chrono::milliseconds(10));  // nobody rings for a cancel
  }
  return true;
}

}  // namespace ff
