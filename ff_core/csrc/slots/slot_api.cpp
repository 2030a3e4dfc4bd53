// The C interface of slots.
#include "base/error.h"
#include "slots/slot.h"

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

int ff_slot_copy(const void* from, uint32_t from_slot, void* to, uint32_t to_slot) {
  return guarded([&] {
    const ArenaView source = ArenaView::of(from), target = ArenaView::of(to);
    SlotView(target, to_slot).take(SlotView(source, from_slot));
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
}
