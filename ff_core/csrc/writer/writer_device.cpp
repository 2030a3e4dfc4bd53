// The writer's copy thread where tensors lie on a device: it puts a version's downloads on the device's streams, then
// follows them group by group, while a crew checksums in the slot what has landed.
#include <cstring>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "writer/writer.h"

namespace ff {
namespace {

// What the copy thread and the crew share about one version.
class Landing {
 public:
  explicit Landing(uint32_t chunks) : done_(chunks) {}

  void land(uint32_t groups) {  // that many groups are in the slot
    const std::lock_guard<std::mutex> lock(mutex_);
    landed_ = groups;
    changed_.notify_all();
  }
  void stop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  bool await(uint32_t group) {  // false: stopped
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || landed_ > group; });
    return !stopped_;
  }
  // Chunks finish in any order. Calls publish(n), one call at a time, when the first n are finished.
  template <class Publish>
  void finish(uint32_t chunk, Publish&& publish) {
    const std::lock_guard<std::mutex> lock(finish_mutex_);
    done_[chunk] = true;
    const uint32_t before = prefix_;
    while (prefix_ < done_.size() && done_[prefix_]) ++prefix_;
    if (prefix_ > before) publish(prefix_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t landed_ = 0;
  bool stopped_ = false;
  std::mutex finish_mutex_;  // taken before the writer's
  std::vector<bool> done_;
  uint32_t prefix_ = 0;
};

// Whatever ends the copy: the crew is done and the streams are empty before anybody else may touch tensors or slot.
class Aftermath {
 public:
  Aftermath(Landing& landing, Crew& crew, DeviceSource& source) : landing_(landing), crew_(crew), source_(source) {}
  ~Aftermath() {
    landing_.stop();
    try {
      crew_.finish();
    } catch (...) {  // reported already, or less important than what is on its way up
    }
    try {
      source_.settle();
    } catch (...) {  // the device has failed: nothing of it runs any more
    }
  }
  Aftermath(const Aftermath&) = delete;
  Aftermath& operator=(const Aftermath&) = delete;

 private:
  Landing& landing_;
  Crew& crew_;
  DeviceSource& source_;
};

// Host tensors and holes. False: cancelled. look(): called every now and then.
template <class Look>
bool copy_host_pieces(const DevicePlan& plan, uint8_t* payload, const std::atomic<bool>& cancelled, Look&& look) {
  constexpr uint64_t kBlock = 1 << 20;  // between two looks at the flag
  for (const HostPiece& piece : plan.host_pieces()) {
    for (uint64_t at = 0; at < piece.bytes; at += kBlock) {
      if (cancelled.load(std::memory_order_relaxed)) return false;
      look();
      const uint64_t bytes = std::min(kBlock, piece.bytes - at);
      uint8_t* const to = payload + piece.offset + at;
      if (piece.source == nullptr) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, static_cast<const uint8_t*>(piece.source) + at, bytes);
      }
    }
  }
  return true;
}

}  // namespace

bool Writer::copy_from_device(Flight& flight) {
  const Geometry& geometry = arena_.geometry();
  const SlotView slot(arena_, flight.slot);
  DeviceSource& source = *flight.source;
  const DevicePlan& plan = source.plan();
  Landing landing(geometry.chunks());
  const Aftermath aftermath(landing, *crew_, source);
  const auto look = [&] {
    if (flight.awaits_window() && flight.marks->device().passed(flight.marks->begun())) flight.start_window(monotonic_ns());
  };
  if (!copy_host_pieces(plan, slot.payload(), flight.cancelled, look)) return false;
  crew_->start(geometry.chunks(), [&](uint32_t chunk, unsigned) {
    if (!landing.await(plan.group_of(chunk))) return;
    const Range range = geometry.chunk(chunk);
    slot.table()[chunk] = flight.checksummed ? crc32c(0, slot.payload() + range.offset, range.bytes) : 0;
    counters_.bytes_copied += range.bytes;
    landing.finish(chunk, [&](uint32_t ready) { advance(flight, std::min(ready, geometry.sent_chunks())); });
  });
  int64_t start = 0;  // about the step's end: before it the device has nothing to copy
  size_t landed = 0;
  const auto land = [&] {
    if (start == 0) flight.start_window(start = monotonic_ns());  // unless it had started: see look
    landing.land(static_cast<uint32_t>(++landed));
  };
  hold(flight, look);
  const DeviceSource::Pace pace{flight.cancelled, flight.urgent, flight.spread_ns,
                                [&](size_t enqueued) {
                                  look();
                                  while (landed < enqueued && source.group_landed(landed)) land();
                                },
                                [&](std::chrono::microseconds time) {
                                  std::unique_lock<std::mutex> lock(mutex_);
                                  changed_.wait_for(lock, time, [&] { return flight.urgent || flight.cancelled; });
                                }};
  if (!source.enqueue(*flight.marks, flight.slot, pace)) return false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    flight.enqueued = true;
    changed_.notify_all();
  }
  while (landed < plan.groups().size()) {
    source.await_group(landed);
    if (flight.cancelled.load()) return false;
    land();
  }
  const uint64_t cpu_before = crew_cpu_ns_;
  crew_->finish();
  crew_cpu_ns_ = crew_->cpu_ns();
  counters_.cpu_ns += crew_cpu_ns_ - cpu_before;
  counters_.copy_ns += static_cast<uint64_t>(monotonic_ns() - start);
  return !flight.cancelled.load();
}

// While the training thread has nothing queued on the device, each call of it counts, and transfers make calls slow.
void Writer::hold(const Flight& flight, const std::function<void()>& look) {
  constexpr int64_t kLook = 2000000;
  const auto over = [&] { return flight.go || flight.urgent || flight.cancelled; };
  std::unique_lock<std::mutex> lock(mutex_);
  for (int64_t now = monotonic_ns(); now < flight.held_until_ns && !over(); now = monotonic_ns()) {
    changed_.wait_for(lock, std::chrono::nanoseconds(std::min(kLook, flight.held_until_ns - now)), over);
    look();
  }
}

void Writer::device_wait(int64_t version, DeviceStream stream, int64_t timeout_ms) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto flight = find(version);
    if (flight != nullptr && !flight->urgent.exchange(true)) changed_.notify_all();
  }
  const auto flight = await_flight(version, timeout_ms, "device_wait", [](const Flight& f) { return f.enqueued; });
  // Not copied yet: it will be, in the order of the device's streams. No marks: all of it lay on the host.
  if (flight != nullptr && flight->marks != nullptr) DeviceSource::device_wait(*flight->marks, stream);
}

bool Writer::step_ended(int64_t version) {
  std::shared_ptr<const DeviceMarks> marks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto flight = find(version);
    if (flight != nullptr) marks = flight->marks;
  }
  return marks == nullptr || marks->device().passed(marks->begun());
}

void Writer::prepare(int device) {
  const std::lock_guard<std::mutex> control(control_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_idle("prepare");
  }
  open_device(device);
}

// The device stays open, and its slots pinned, when other tensors of it are set.
void Writer::open_device(int index) {
  if (device_arena_ != nullptr && device_arena_->index() == index) return;
  auto device = open_cuda_device(index);
  collectives_.set_device(nullptr);
  device_arena_.reset();  // a slot is registered once
  device_arena_ = std::make_shared<DeviceArena>(std::move(device), index, arena_);
  collectives_.set_device(device_arena_);
}

std::shared_ptr<DeviceSource> Writer::open_source(const SegmentMap& segments) {
  if (segments.device() < 0) return nullptr;
  open_device(segments.device());
  if (crew_ == nullptr) crew_ = std::make_unique<Crew>("ff-check", crew_size());
  return std::make_shared<DeviceSource>(device_arena_, segments.segments());
}

}  // namespace ff
