// Slot -> live tensors, on the host and on devices.
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/crew.h"
#include "base/error.h"
#include "device/cuda_device.h"
#include "device/device_restore.h"
#include "slots/segments.h"
#include "slots/slot.h"

namespace ff {
namespace {

void verify_all(const SlotView& slot, const SlotRecord& record, Crew& crew) {
  slot.verify_head(record);
  crew.start(slot.filled_chunks(record), [&](uint32_t chunk, unsigned) { slot.verify_chunk(record, chunk); });
  crew.finish();
}

// Verifies the whole slot, then copies each segment's bytes to its pointer. FF_ECORRUPT also where the slot was not
// filled that far.
void restore(const ArenaView& arena, uint32_t index, const ff_segment* segments, size_t count) {
  const SlotView slot(arena, index);
  const SlotRecord record = slot.complete_record();
  for (size_t i = 0; i < count; ++i) {
    check_segment(segments[i], i, arena.geometry().payload_bytes());
    if (segments[i].offset + segments[i].bytes > record.payload_bytes) {
      raise(FF_ECORRUPT,
            "slot %u of rank %u holds the first %llu of %llu payload bytes, segment %zu lies at %llu to %llu: not in "
            "this copy",
            index, arena.layout().rank, static_cast<unsigned long long>(record.payload_bytes),
            static_cast<unsigned long long>(arena.geometry().payload_bytes()), i,
            static_cast<unsigned long long>(segments[i].offset),
            static_cast<unsigned long long>(segments[i].offset + segments[i].bytes));
    }
  }
  std::map<int, std::pair<std::unique_ptr<Device>, std::vector<ff_segment>>> devices;
  for (size_t i = 0; i < count; ++i) {
    if (segments[i].bytes == 0 || segments[i].device == -1) continue;
    auto& [device, list] = devices[segments[i].device];
    if (device == nullptr) device = open_cuda_device(segments[i].device);
    list.push_back(segments[i]);
  }
  Crew crew("ff-restore", crew_size());
  verify_all(slot, record, crew);  // before the first live byte changes
  for (size_t i = 0; i < count; ++i) {
    if (segments[i].bytes == 0 || segments[i].device != -1) continue;
    std::memcpy(segments[i].ptr, slot.payload() + segments[i].offset, segments[i].bytes);
  }
  for (auto& [index, one] : devices) upload_segments(*one.first, slot.payload(), one.second, crew);
}

}  // namespace
}  // namespace ff

extern "C" int ff_slot_restore(const void* base, uint32_t slot, const ff_segment* segments, size_t count) {
  return ff::guarded([&] {
    if (segments == nullptr && count > 0) ff::raise(FF_EINVAL, "segments is null, count is %zu", count);
    ff::restore(ff::ArenaView::of(base), slot, segments, count);
    return FF_OK;
  });
}
