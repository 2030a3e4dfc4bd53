// An arena as a device uses it: the device, and the slots' payloads registered with it as pinned memory.
//
// Registering takes about a second for a few gigabytes. A thread does it, slot after slot, so that a newcomer restores
// and trains meanwhile; the first copy into a slot waits for that slot only.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "device/device.h"
#include "slots/arena.h"

namespace ff {

class DeviceArena {
 public:
  DeviceArena(std::unique_ptr<Device> device, int index, const ArenaView& arena);
  ~DeviceArena();  // joins the thread, takes the registrations back
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  Device& device() { return *device_; }
  int index() const { return index_; }
  const ArenaView& arena() const { return arena_; }
  // Waits until `slot` is pinned; false: *cancelled came first. Error(FF_EDEVICE) if it could not be.
  bool await_pinned(uint32_t slot, const std::atomic<bool>& cancelled);

 private:
  void pin_all() noexcept;
  void* payload(uint32_t slot) const;

  const std::unique_ptr<Device> device_;
  const int index_;
  const ArenaView arena_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t pinned_ = 0;  // slots
  bool stopping_ = false;
  std::unique_ptr<Error> failure_;
  std::thread thread_;
};

}  // namespace ff
