#include "device_source.h"

#include <algorithm>
#include <utility>

#include "slot.h"

namespace ff {

DeviceMarks::DeviceMarks(std::shared_ptr<DeviceArena> arena)
    : arena_(std::move(arena)), begun_(arena_->device()), copied_(arena_->device()) {}

DeviceSource::DeviceSource(std::shared_ptr<DeviceArena> arena, const std::vector<ff_segment>& segments)
    : arena_(std::move(arena)),
      device_(arena_->device()),
      plan_(segments, arena_->arena().geometry(), device_.can_gather()),
      half_bytes_(std::min(kStagingBytes, arena_->arena().geometry().payload_bytes() / kPage * kPage + kPage) + kPage) {
  for (size_t i = 0; i < plan_.groups().size(); ++i) landed_.push_back(std::make_unique<OwnedEvent>(device_, true));
  copy_ = std::make_unique<OwnedStream>(device_);
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
    device_.upload(tiles_, plan_.tiles().data(), bytes, copy_->get());
    device_.synchronize(copy_->get());
  } catch (...) {
    device_.release(tiles_);
    device_.release(staging_);
    throw;
  }
}

DeviceSource::~DeviceSource() {
  copy_.reset();
  pack_.reset();
  if (tiles_ != 0) device_.release(tiles_);
  if (staging_ != 0) device_.release(staging_);
}

std::shared_ptr<const DeviceMarks> DeviceSource::mark(DeviceStream caller) const {
  auto marks = std::make_shared<const DeviceMarks>(arena_);
  device_.record(marks->begun(), caller);
  return marks;
}

void DeviceSource::fence(const DeviceMarks& marks, DeviceStream caller) {
  marks.device().wait(caller, marks.copied());
}

bool DeviceSource::enqueue(const DeviceMarks& marks, uint32_t slot, const std::atomic<bool>& cancelled,
                           const std::function<void(size_t)>& progress) {
  if (!arena_->await_pinned(slot, cancelled)) return false;
  uint8_t* const payload = SlotView(arena_->arena(), slot).payload();
  device_.wait(copy_->get(), marks.begun());
  if (pack_ != nullptr) device_.wait(pack_->get(), marks.begun());
  size_t next = 0;
  for (size_t group = 0; group < landed_.size(); ++group) {
    for (; next < plan_.groups()[group].end_operation; ++next) {
      if (cancelled.load(std::memory_order_relaxed)) return false;
      download(plan_.operations()[next], payload);
    }
    device_.record(landed_[group]->get(), copy_->get());
    progress(group + 1);
  }
  device_.record(marks.copied(), copy_->get());  // behind every gather too: each is followed by its download
  return true;
}

void DeviceSource::download(const DeviceOperation& operation, uint8_t* payload) {
  if (operation.tiles == 0) {
    device_.download(payload + operation.offset, operation.source, operation.bytes, copy_->get());
    return;
  }
  // A half is packed again only when its last download is over; an event never recorded holds nobody up.
  const DeviceAddress staging = staging_ + half_ * half_bytes_;
  device_.wait(pack_->get(), drained_[half_]->get());
  device_.gather(tiles_ + operation.first_tile * sizeof(GatherTile), operation.tiles, staging, pack_->get());
  device_.record(packed_[half_]->get(), pack_->get());
  device_.wait(copy_->get(), packed_[half_]->get());
  device_.download(payload + operation.offset, staging + operation.skew, operation.bytes, copy_->get());
  device_.record(drained_[half_]->get(), copy_->get());
  half_ ^= 1;
}

bool DeviceSource::group_landed(size_t group) {
  return device_.passed(landed_[group]->get());
}

void DeviceSource::await_group(size_t group) {
  device_.await(landed_[group]->get());
}

void DeviceSource::settle() {
  if (pack_ != nullptr) device_.synchronize(pack_->get());
  device_.synchronize(copy_->get());
}

}  // namespace ff
