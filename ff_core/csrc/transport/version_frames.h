// The frames that carry one version from an arena: what a writer and a sender have in common.
#pragma once
#include <vector>

#include "slots/slot.h"
#include "transport/wire.h"

namespace ff {

struct VersionId {
  uint32_t rank;
  uint64_t epoch;
  int64_t version;
};

inline BeginBody begin_body(const ArenaView& arena) {
  return {arena.layout().sent_bytes, arena.layout().chunk_bytes};
}

// Headers; the data that follows is `journal`, begin_body(), the chunk in the slot's payload, the slot's blob.
FrameHeader journal_frame(const VersionId& id, const uint8_t* journal, uint64_t bytes);
FrameHeader begin_frame(const VersionId& id, const BeginBody& body, bool checksummed);
FrameHeader chunk_frame(const VersionId& id, const ArenaView& arena, const SlotView& slot, uint32_t chunk,
                        bool checksummed);
FrameHeader blob_frame(const VersionId& id, uint64_t bytes, uint32_t crc);

}  // namespace ff
