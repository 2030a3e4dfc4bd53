// The C interface of slots.
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda_device.h"
#include "device_restore.h"
#include "error.h"
#include "segments.h"
#include "slot.h"

namespace ff {
namespace {

void verify_all(const SlotView& slot, const SlotRecord& record, Crew& crew) {
  slot.verify_head(record);
  crew.start(slot.filled_chunks(record), [&](uint32_t chunk, unsigned) { slot.verify_chunk(record, chunk); });
  crew.finish();
}

}  // namespace

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

}  // namespace ff

using ff::ArenaView;
using ff::guarded;
using ff::SlotView;

extern "C" {

int ff_slot_info_get(const void* base, uint32_t slot, ff_slot_info* out) {
  return guarded([&] {
    if (out == nullptr) ff::raise(FF_EINVAL, "slot info: result pointer is null");
    const ArenaView arena = ArenaView::of(base);
    const ff::SlotRecord r = SlotView(arena, slot).record();
    *out = ff_slot_info{};
    out->state = r.state;
    out->version = -1;
    if (r.state == FF_SLOT_EMPTY) return FF_OK;
    out->epoch = r.epoch;
    out->version = r.version;
    if (r.state != FF_SLOT_COMPLETE) return FF_OK;
    out->payload_bytes = r.payload_bytes;
    out->blob_bytes = r.blob_bytes;
    out->full = r.payload_bytes == arena.geometry().payload_bytes();
    out->checksummed = r.flags & ff::kChecksummed;
    return FF_OK;
  });
}

int ff_slot_restamp(void* base, uint32_t slot, uint64_t epoch) {
  return guarded([&] {
    const ArenaView arena = ArenaView::of(base);
    SlotView(arena, slot).restamp(epoch);
    return FF_OK;
  });
}

int ff_slot_empty(void* base, uint32_t slot) {
  return guarded([&] {
    const ArenaView arena = ArenaView::of(base);
    SlotView(arena, slot).empty();
    return FF_OK;
  });
}

int ff_slot_verify(const void* base, uint32_t slot) {
  return guarded([&] {
    const ArenaView arena = ArenaView::of(base);
    SlotView(arena, slot).verify();
    return FF_OK;
  });
}

int ff_slot_blob(const void* base, uint32_t slot, const void** data, uint64_t* bytes) {
  return guarded([&] {
    if (data == nullptr || bytes == nullptr) ff::raise(FF_EINVAL, "blob: result pointer is null");
    const ArenaView arena = ArenaView::of(base);
    const SlotView view(arena, slot);
    const ff::SlotRecord r = view.complete_record();
    view.verify_head(r);
    *data = view.blob();
    *bytes = r.blob_bytes;
    return FF_OK;
  });
}

int ff_slot_corrupt(void* base, uint32_t slot, uint64_t payload_offset) {
  return guarded([&] {
    const ArenaView arena = ArenaView::of(base);
    const SlotView view(arena, slot);
    if (payload_offset >= arena.geometry().payload_bytes()) {
      ff::raise(FF_EINVAL, "payload offset is %llu, the payload has %llu bytes",
                static_cast<unsigned long long>(payload_offset),
                static_cast<unsigned long long>(arena.geometry().payload_bytes()));
    }
    view.payload()[payload_offset] ^= 1;
    return FF_OK;
  });
}

int ff_slot_restore(const void* base, uint32_t slot, const ff_segment* segments, size_t count) {
  return guarded([&] {
    if (segments == nullptr && count > 0) ff::raise(FF_EINVAL, "segments is null, count is %zu", count);
    ff::restore(ArenaView::of(base), slot, segments, count);
    return FF_OK;
  });
}
}
