// A version in flight: begun (or to be sent again), and not yet both complete in the own slot and acknowledged by every
// holder. Shared between the writer (which owns the queue), its copy thread and one sending thread per holder.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/device_source.h"
#include "slots/slot.h"

namespace ff {

struct Flight {
  Flight(uint32_t slot_, uint64_t epoch_, int64_t version_, bool resend_, bool checksummed_)
      : slot(slot_), epoch(epoch_), version(version_), resend(resend_), checksummed(checksummed_) {}

  const uint32_t slot;
  const uint64_t epoch;
  const int64_t version;
  const bool resend;  // the slot is complete already: verify and send, copy nothing
  const bool checksummed;
  std::shared_ptr<const std::vector<uint8_t>> journal;  // to be sent ahead of this version; null: unchanged
  int64_t held_until_ns = 0;  // monotonic: nothing goes on a device's streams before, unless `go` or `urgent`; 0: not held
  int64_t spread_ns = 0;      // a device's downloads are spread over so long; 0: as fast as it can
  int64_t window_ns = 0;  // to be acknowledged so long after there is something to copy; 0: as soon as possible
  // Tensors on a device: where they are copied from, and when. Null: all lie on the host.
  std::shared_ptr<DeviceSource> source;
  std::shared_ptr<const DeviceMarks> marks;
  // The copy thread has found something to copy: on a device not before the step has run there.
  void start_window(int64_t now_ns) {
    if (awaits_window()) deadline_ns.store(now_ns + window_ns, std::memory_order_relaxed);
  }
  bool awaits_window() const { return window_ns > 0 && deadline_ns.load(std::memory_order_relaxed) == 0; }
  uint64_t stamp() const { return make_stamp(epoch, version); }

  // Copy thread -> sending threads.
  std::atomic<int64_t> deadline_ns{0};  // monotonic clock; final when a chunk is ready, 0: there is none
  std::atomic<uint32_t> ready{0};       // sent chunks whose bytes and checksums are final in the slot
  std::atomic<bool> blob_ready{false};  // blob_bytes and blob_crc below are final
  std::atomic<bool> cancelled{false};
  std::atomic<bool> urgent{false};  // the training thread is in device_wait: put the rest on the device's streams at once
  std::atomic<bool> go{false};      // the training thread has work for the device again: see held_until_ns
  uint64_t blob_bytes = 0;
  uint32_t blob_crc = 0;

  // Under the writer's mutex.
  bool copied = false;  // live tensors have been read
  bool enqueued = false;  // ... or will have been when the device's streams reach marks->copied
  bool sealed = false;
  bool own_complete = false;  // in the own slot
  bool failed = false;        // will never commit
  size_t acknowledgements = 0;
};

// Bytes, times and counts of a writer; threads add to them as they go.
struct Counters {
  std::atomic<uint64_t> versions{0}, bytes_copied{0}, bytes_sent{0}, copy_ns{0}, send_ns{0}, ack_wait_ns{0}, cpu_ns{0},
      yielded_ns{0}, paced_ns{0}, deadlines{0}, deadlines_missed{0}, zero_copy_bytes{0};
};

}  // namespace ff
