// The writer moves a worker's live tensors into a slot of its own arena and to its holders, from its own threads.
//
// Threads: one copy thread (live tensors -> slot, checksums, headers) for the writer's life, one sending thread per
// holder. Locks, outermost first: control_ (one of add_holder, clear_holders, prepare, set_segments, cancel at a time), mutex_
// (flights and what is known of them), a link's own mutex. No thread does I/O or copies tensors under mutex_.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/crew.h"
#include "base/fd.h"
#include "device/cuda_device.h"
#include "device/device_source.h"
#include "slots/segments.h"
#include "writer/collectives.h"
#include "writer/flight.h"
#include "writer/holder.h"

namespace ff {

class Writer final : public LinkOwner {
 public:
  explicit Writer(const ff_writer_options& options);
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // Opens a device ahead of the segments that will lie on it, and pins the slots for it.
  void prepare(int device);
  void set_segments(const ff_segment* segments, size_t count);
  // `make` makes the transport, given the own arena's address, and is called only if nothing is in flight (FF_EINVAL).
  // Then the transport connects, without any lock: FF_ECANCELLED if a cancel came meanwhile, which ends the wait.
  void add_holder(const std::function<std::unique_ptr<Transport>(const void* arena)>& make);
  void clear_holders();
  void begin(uint32_t slot, uint64_t epoch, int64_t version, DeviceStream stream);
  void resend(uint32_t slot, uint64_t epoch, int64_t version);
  void seal(int64_t version, const void* blob, uint64_t bytes);
  void wait_copied(int64_t version, int64_t timeout_ms);
  void device_wait(int64_t version, DeviceStream stream, int64_t timeout_ms);
  bool step_ended(int64_t version);
  void check();
  void cancel();
  void set_window(uint64_t window_us);
  void set_downloads(uint64_t hold_us, uint64_t spread_us);
  void go();
  ff_writer_stats stats();
  Collectives& collectives() { return collectives_; }

  void on_acknowledged(Flight& flight) override;  // these two: from the links' threads
  void on_lost(const Error& error) override;

 private:
  void attach_journal(Flight& flight);                 // under mutex_: if the holders do not have it yet
  void launch(const std::shared_ptr<Flight>& flight);  // under mutex_
  void check_launch(uint32_t slot, uint64_t epoch, int64_t version) const;
  void commit();                            // under mutex_: retires flights that are done, in order
  void check_idle(const char* what) const;  // under mutex_
  void expect_no_cancel(uint64_t since) const;  // under mutex_
  void connect(Transport& transport, uint64_t since);
  void wake_links();                        // under mutex_
  std::shared_ptr<Flight> find(int64_t version) const;
  // Waits until `enough` of the flight or until it is copied. Null: nothing reads its live tensors any more.
  std::shared_ptr<Flight> await_flight(int64_t version, int64_t timeout_ms, const char* what,
                                       bool (*enough)(const Flight&));
  bool was_cancelled(int64_t version) const { return version > committed_version_ && version <= cancelled_version_; }

  // The copy thread (writer_copy.cpp).
  void run_copies() noexcept;
  std::shared_ptr<Flight> next_work() const;  // under mutex_
  void work_on(Flight& flight, std::unique_lock<std::mutex>& lock);
  bool copy(Flight& flight);              // false: cancelled
  bool copy_from_device(Flight& flight);  // likewise (writer_device.cpp)
  void hold(const Flight& flight, const std::function<void()>& look);
  void verify(Flight& flight);
  void complete(Flight& flight);
  void fail(Flight& flight, const Error& error);  // under mutex_
  void advance(Flight& flight, uint32_t ready);

  void open_device(int index);  // these two: under control_
  std::shared_ptr<DeviceSource> open_source(const SegmentMap& segments);

  const ArenaView arena_;
  ff_status_page* const page_;
  const Bell notify_;
  const bool checksum_;
  Collectives collectives_;
  const LinkOptions link_options_;
  Counters counters_;

  std::mutex control_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Flight>> flights_;  // oldest first
  std::vector<std::unique_ptr<HolderLink>> links_;
  std::vector<Transport*> connecting_;  // of add_holder's callers
  uint64_t cancels_ = 0;
  std::unique_ptr<const SegmentMap> segments_;
  std::shared_ptr<DeviceArena> device_arena_;  // under control_; null: no segment was ever on a device, nor was one prepared
  std::shared_ptr<DeviceSource> source_;       // null: no segment is
  std::unique_ptr<Crew> crew_;                 // made before the first source, used by the copy thread
  uint64_t crew_cpu_ns_ = 0;                   // counted so far
  uint64_t journal_sequence_ = 0;  // what the current holders have
  uint64_t last_stamp_ = 0;
  int64_t committed_version_ = -1;
  int64_t cancelled_version_ = -1;  // newest of those that the last cancel abandoned
  size_t lost_ = 0;
  int64_t window_ns_ = 0, hold_ns_ = 0, spread_ns_ = 0;  // see Flight
  int problem_ = FF_OK;  // why versions in flight cannot commit
  std::string problem_text_;
  bool cancelling_ = false;
  bool busy_ = false;  // the copy thread is at tensors or slots
  bool stopping_ = false;

  std::thread copy_thread_;
};

}  // namespace ff
