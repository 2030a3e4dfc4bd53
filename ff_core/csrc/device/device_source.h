// The device source copies versions from a device into slots. The device itself orders the work. The training thread
// marks where on its stream the step ended, and lets the next step's stream wait for the copy. It never waits for the
// device.
//
//   caller's stream   step v ──mark── forward, backward ────── device wait ── step v+1
//   pack stream            └▶ gather into half 0, half 1, half 0 ...    ▲
//   two copy streams       └▶ download ... event per group ... ─────copied
//
// A device that has begun with one stream's downloads takes up another's only when it finds nothing that it could do on
// the first. A script's own small download (its loss, say) must come in between. So the engine's downloads go in pieces
// to two streams in turns, and each waits for the piece before: the device has to look around after every piece. Only a
// few pieces are put on the streams ahead of the device, for the script's stream may share a hardware queue with one of
// them. Transfers at full speed slow down the training thread's calls and the device's kernels, so pieces may also be
// spread over a time. All that ends when somebody is in a hurry: the training thread in device_wait(), which itself waits until all pieces
// are on the streams.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "device/device_arena.h"
#include "device/device_plan.h"

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
  static void device_wait(const DeviceMarks& marks, DeviceStream caller);

  // How an enqueue() behaves. The functions are called in its thread.
  struct Pace {
    const std::atomic<bool>& cancelled;
    const std::atomic<bool>& urgent;  // all that is left goes on the streams at once
    int64_t spread_ns;                // until then pieces go one by one, evenly over so long; 0: as fast as the device can
    std::function<void(size_t enqueued_groups)> progress;     // after each group, and while there is nothing to do
    std::function<void(std::chrono::microseconds)> pause;     // so long at most; ends when one of the two is set
  };

  // One thread at a time, the copy thread. False: cancelled; what was put on the streams still runs, see settle().
  // Takes almost as long as the copy, or from when `urgent` is set on as long as the device's queues do.
  bool enqueue(const DeviceMarks& marks, uint32_t slot, const Pace& pace);
  bool group_landed(size_t group);  // of those enqueued: its bytes that come from the device are in the slot
  void await_group(size_t group);
  void settle();                   // until the streams are empty

 private:
  static constexpr uint32_t kAhead = 3;  // pieces that may be on the streams while nobody is in a hurry

  bool copy(const DeviceOperation& operation, uint8_t* payload, const Pace& pace);  // false: cancelled
  bool download(uint8_t* to, DeviceAddress from, uint64_t bytes, const Pace& pace);
  bool await_room(const Pace& pace);
  bool too_early(const Pace& pace) const;
  void end_piece();
  DeviceStream copy_stream() const { return copy_[turn_]->get(); }  // what is put there comes after all that was put before

  const std::shared_ptr<DeviceArena> arena_;
  Device& device_;
  const DevicePlan plan_;
  std::vector<std::unique_ptr<OwnedEvent>> landed_;  // per group
  std::unique_ptr<OwnedEvent> pieces_[kAhead];       // piece n ends with event n % kAhead
  uint64_t piece_ = 0, piece_bytes_ = 0;             // the one being put together
  size_t group_ = 0;                                 // likewise
  const uint64_t bytes_;                             // of all operations
  uint64_t enqueued_ = 0;                            // of this version
  int64_t started_ns_ = 0;                           // monotonic, likewise
  const uint64_t half_bytes_;  // of the staging memory, which has two
  DeviceAddress tiles_ = 0, staging_ = 0;
  std::unique_ptr<OwnedEvent> packed_[2], drained_[2];  // per half of the staging memory
  uint32_t half_ = 0;
  // Last: their destructors wait for what uses the rest.
  std::unique_ptr<OwnedStream> pack_, copy_[2];
  uint32_t turn_ = 0;
};

}  // namespace ff
