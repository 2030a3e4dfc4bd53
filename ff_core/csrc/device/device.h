// A device: an accelerator whose memory the engine copies from and to, as far as the engine needs one.
//
// Everything between record() and wait() is ordered by the device, not by the host. Operations on one stream run in the
// order of the calls, and streams wait for each other's events. Only synchronize(), await() and settle() wait for the
// device. Streams and events belong to the Device that made them. Each call may come from any thread and leaves the
// thread's own device state as it was. Failures are Error(FF_EDEVICE) that say what was being done. destroy, release
// and unpin never fail: a device that is gone has freed everything.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device/gather.h"

namespace ff {

using DeviceStream = void*;  // null: the device's legacy default stream
using DeviceEvent = void*;
using DeviceAddress = uint64_t;

class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceStream create_stream() = 0;  // not ordered with the default stream; of the lowest priority
  virtual void destroy_stream(DeviceStream stream) noexcept = 0;
  virtual DeviceEvent create_event(bool awaited) = 0;  // awaited: a thread will await() it
  virtual void destroy_event(DeviceEvent event) noexcept = 0;
  virtual void record(DeviceEvent event, DeviceStream stream) = 0;
  virtual void wait(DeviceStream stream, DeviceEvent event) = 0;  // the stream waits; what was recorded last counts
  virtual bool passed(DeviceEvent event) = 0;

  virtual void await(DeviceEvent event) = 0;           // the thread waits, sleeping
  virtual void synchronize(DeviceStream stream) = 0;   // the thread waits until the stream is empty
  virtual void settle() = 0;                           // ... until every stream of the device is, anybody's

  virtual DeviceAddress allocate(size_t bytes) = 0;
  virtual void release(DeviceAddress address) noexcept = 0;
  virtual void* allocate_pinned(size_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;
  virtual void pin(void* memory, size_t bytes) = 0;  // host memory that exists; page aligned
  virtual void unpin(void* memory) noexcept = 0;

  // `to` and `from` on the host must be pinned, or the call waits for the copy.
  virtual void download(void* to, DeviceAddress from, size_t bytes, DeviceStream stream) = 0;
  virtual void upload(DeviceAddress to, const void* from, size_t bytes, DeviceStream stream) = 0;

  // Packs `count` tiles (an array on the device) into the staging buffer at `staging`. Only where can_gather() was true;
  // ask it before other threads call gather().
  virtual bool can_gather() = 0;
  virtual void gather(DeviceAddress tiles, uint32_t count, DeviceAddress staging, DeviceStream stream) = 0;
};

// An event that is destroyed with its owner; the device must outlive it.
class OwnedEvent {
 public:
  explicit OwnedEvent(Device& device, bool awaited = false) : device_(device), event_(device.create_event(awaited)) {}
  ~OwnedEvent() { device_.destroy_event(event_); }
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  DeviceEvent get() const { return event_; }

 private:
  Device& device_;
  DeviceEvent event_;
};

// A stream that is emptied and destroyed with its owner.
class OwnedStream {
 public:
  explicit OwnedStream(Device& device) : device_(device), stream_(device.create_stream()) {}
  ~OwnedStream() {
    try {
      device_.synchronize(stream_);
    } catch (...) {  // the device is gone, and its work with it
    }
    device_.destroy_stream(stream_);
  }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  DeviceStream get() const { return stream_; }

 private:
  Device& device_;
  DeviceStream stream_;
};

}  // namespace ff
