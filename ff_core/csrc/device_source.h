// The device source copies versions from a device into slots, ordered by the device itself: the training thread marks
// where on its stream the step ended and lets the next step's stream wait for the copy; it never waits for the device.
//
//   caller's stream   step v ──mark── forward, backward ──────────── fence ── step v+1
//   pack stream            └▶ gather into half 0, half 1, half 0 ...    ▲
//   copy stream            └▶ download ... event per group ... ─────copied
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "device_arena.h"
#include "device_plan.h"

namespace ff {

// Two moments of one version on the device.
class DeviceMarks {
 public:
  explicit DeviceMarks(std::shared_ptr<DeviceArena> arena);
  DeviceEvent begun() const { return begun_.get(); }    // on the caller's stream: the step's end
  DeviceEvent copied() const { return copied_.get(); }  // on the copy stream: nothing reads live tensors any more
  Device& device() const { return arena_->device(); }

 private:
  const std::shared_ptr<DeviceArena> arena_;  // the events die before their device
  const OwnedEvent begun_, copied_;
};

class DeviceSource {
 public:
  DeviceSource(std::shared_ptr<DeviceArena> arena, const std::vector<ff_segment>& segments);
  ~DeviceSource();
  DeviceSource(const DeviceSource&) = delete;
  DeviceSource& operator=(const DeviceSource&) = delete;

  const DevicePlan& plan() const { return plan_; }

  // Any thread, without waiting for the device.
  std::shared_ptr<const DeviceMarks> mark(DeviceStream caller) const;
  static void fence(const DeviceMarks& marks, DeviceStream caller);

  // One thread at a time, the copy thread. False: cancelled; what was put on the streams still runs, see settle().
  // progress: called after each group, for a device whose queues are full makes this take as long as the copy.
  bool enqueue(const DeviceMarks& marks, uint32_t slot, const std::atomic<bool>& cancelled,
               const std::function<void(size_t enqueued_groups)>& progress);
  bool group_landed(size_t group);  // of those enqueued: its bytes that come from the device are in the slot
  void await_group(size_t group);
  void settle();                   // until the streams are empty

 private:
  void download(const DeviceOperation& operation, uint8_t* payload);

  const std::shared_ptr<DeviceArena> arena_;
  Device& device_;
  const DevicePlan plan_;
  std::vector<std::unique_ptr<OwnedEvent>> landed_;  // per group
  const uint64_t half_bytes_;  // of the staging memory, which has two
  DeviceAddress tiles_ = 0, staging_ = 0;
  std::unique_ptr<OwnedEvent> packed_[2], drained_[2];  // per half of the staging memory
  uint32_t half_ = 0;
  // Last: their destructors wait for what uses the rest.
  std::unique_ptr<OwnedStream> pack_, copy_;
};

}  // namespace ff
