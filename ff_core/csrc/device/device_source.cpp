#include "device/device_source.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/fd.h"
#include "slots/slot.h"

namespace ff {
namespace {

constexpr uint64_t kPieceBytes = 32 << 20;  // 0.6 ms on PCIe 5; each change of streams costs 4 us
constexpr std::chrono::microseconds kShortPause{40}, kLongPause{400};  // less than the pieces ahead take

uint64_t bytes_of(const std::vector<DeviceOperation>& operations) {
  return std::accumulate(operations.begin(), operations.end(), uint64_t{0},
                         [](uint64_t sum, const DeviceOperation& operation) { return sum + operation.bytes; });
}

}  // namespace

DeviceMarks::DeviceMarks(std::shared_ptr<DeviceArena> arena)
    : arena_(std::move(arena)), begun_(arena_->device()), copied_(arena_->device()) {}

DeviceSource::DeviceSource(std::shared_ptr<DeviceArena> arena, const std::vector<ff_segment>& segments)
    : arena_(std::move(arena)),
      device_(arena_->device()),
      plan_(segments, arena_->arena().geometry(), device_.can_gather()),
      bytes_(bytes_of(plan_.operations())),
      half_bytes_(std::min(kStagingBytes, arena_->arena().geometry().payload_bytes() / kPage * kPage + kPage) + kPage) {
  for (size_t i = 0; i < plan_.groups().size(); ++i) landed_.push_back(std::make_unique<OwnedEvent>(device_, true));
  for (auto& event : pieces_) event = std::make_unique<OwnedEvent>(device_);
  for (auto& stream : copy_) stream = std::make_unique<OwnedStream>(device_);
  if (plan_.tiles().empty()) return;
  pack_ = std::make_unique<OwnedStream>(device_);
  for (int half = 0; half < 2; ++half) {
    packed_[half] = std::make_unique<OwnedEvent>(device_);
    drained_[half] = std::make_unique<OwnedEvent>(device_);
  }
  try {
    const size_t bytes = plan_.tiles().size() * sizeof(GatherTile);
    staging_ = device_.allocate(2 * half_bytes_);
    tiles_ = device_.allocate(bytes);
    device_.upload(tiles_, plan_.tiles().data(), bytes, copy_stream());
    device_.synchronize(copy_stream());
  } catch (...) {
    device_.release(tiles_);
    device_.release(staging_);
    throw;
  }
}

DeviceSource::~DeviceSource() {
  for (auto& stream : copy_) stream.reset();
  pack_.reset();
  if (tiles_ != 0) device_.release(tiles_);
  if (staging_ != 0) device_.release(staging_);
}

std::shared_ptr<const DeviceMarks> DeviceSource::mark(DeviceStream caller) const {
  auto marks = std::make_shared<const DeviceMarks>(arena_);
  device_.record(marks->begun(), caller);
  return marks;
}

void DeviceSource::device_wait(const DeviceMarks& marks, DeviceStream caller) {
  marks.device().wait(caller, marks.copied());
}

bool DeviceSource::enqueue(const DeviceMarks& marks, uint32_t slot, const Pace& pace) {
  if (!arena_->await_pinned(slot, pace.cancelled)) return false;
  uint8_t* const payload = SlotView(arena_->arena(), slot).payload();
  device_.wait(copy_stream(), marks.begun());
  if (pack_ != nullptr) device_.wait(pack_->get(), marks.begun());
  size_t next = 0;
  enqueued_ = 0;
  started_ns_ = monotonic_ns();
  for (group_ = 0; group_ < landed_.size();) {
    for (; next < plan_.groups()[group_].end_operation; ++next) {
      if (!copy(plan_.operations()[next], payload, pace)) return false;
    }
    device_.record(landed_[group_]->get(), copy_stream());
    pace.progress(++group_);
  }
  device_.record(marks.copied(), copy_stream());  // behind every gather too: each is followed by its download
  return true;
}

bool DeviceSource::copy(const DeviceOperation& operation, uint8_t* payload, const Pace& pace) {
  if (operation.tiles == 0) return download(payload + operation.offset, operation.source, operation.bytes, pace);
  // A half is packed again only when its last download is over; an event never recorded holds nobody up.
  const DeviceAddress staging = staging_ + half_ * half_bytes_;
  device_.wait(pack_->get(), drained_[half_]->get());
  device_.gather(tiles_ + operation.first_tile * sizeof(GatherTile), operation.tiles, staging, pack_->get());
  device_.record(packed_[half_]->get(), pack_->get());
  device_.wait(copy_stream(), packed_[half_]->get());
  const bool whole = download(payload + operation.offset, staging + operation.skew, operation.bytes, pace);
  device_.record(drained_[half_]->get(), copy_stream());
  half_ ^= 1;
  return whole;
}

bool DeviceSource::download(uint8_t* to, DeviceAddress from, uint64_t bytes, const Pace& pace) {
  for (uint64_t at = 0; at < bytes;) {
    if (piece_bytes_ == kPieceBytes) end_piece();
    if (piece_bytes_ == 0 && !await_room(pace)) return false;
    if (pace.cancelled.load(std::memory_order_relaxed)) return false;
    const bool urgent = pace.urgent.load(std::memory_order_relaxed);
    const uint64_t part = urgent ? bytes - at : std::min(kPieceBytes - piece_bytes_, bytes - at);
    device_.download(to + at, from + at, part, copy_stream());
    at += part;
    enqueued_ += part;
    piece_bytes_ = std::min(kPieceBytes, piece_bytes_ + part);
  }
  return true;
}

void DeviceSource::end_piece() {
  const DeviceEvent end = pieces_[piece_ % kAhead]->get();
  device_.record(end, copy_stream());
  turn_ ^= 1;
  device_.wait(copy_stream(), end);
  ++piece_;
  piece_bytes_ = 0;
}

// Until one more piece may be put on the streams. False: cancelled.
bool DeviceSource::await_room(const Pace& pace) {
  auto pause = kShortPause;
  // The event that the piece will end with: of the piece kAhead before it, or never recorded.
  while (!pace.urgent.load(std::memory_order_relaxed) &&
         (too_early(pace) || !device_.passed(pieces_[piece_ % kAhead]->get()))) {
    if (pace.cancelled.load(std::memory_order_relaxed)) return false;
    pace.progress(group_);
    pace.pause(pause);
    pause = std::min(2 * pause, kLongPause);
  }
  return true;
}

// The share of the time that is over is less than the share of the bytes that are on the streams.
bool DeviceSource::too_early(const Pace& pace) const {
  const double share = static_cast<double>(enqueued_) / static_cast<double>(std::max<uint64_t>(bytes_, 1));
  return static_cast<double>(monotonic_ns() - started_ns_) < share * static_cast<double>(pace.spread_ns);
}

bool DeviceSource::group_landed(size_t group) {
  return device_.passed(landed_[group]->get());
}

void DeviceSource::await_group(size_t group) {
  device_.await(landed_[group]->get());
}

void DeviceSource::settle() {
  if (pack_ != nullptr) device_.synchronize(pack_->get());
  for (const auto& stream : copy_) device_.synchronize(stream->get());
}

}  // namespace ff
