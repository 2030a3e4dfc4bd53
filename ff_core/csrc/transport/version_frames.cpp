#include "transport/version_frames.h"

#include "checksum/crc32c.h"

namespace ff {

FrameHeader journal_frame(const VersionId& id, const uint8_t* journal, uint64_t bytes) {
  FrameHeader frame = make_frame(FrameType::kJournal, id.rank, id.epoch, -1);
  frame.length = bytes;
  frame.data_crc = crc32c(0, journal, bytes);
  return frame;
}

FrameHeader begin_frame(const VersionId& id, const BeginBody& body, bool checksummed) {
  FrameHeader frame = make_frame(FrameType::kBegin, id.rank, id.epoch, id.version);
  frame.flags = checksummed ? kChecksummed : 0;
  frame.length = sizeof body;
  frame.data_crc = crc32c(0, &body, sizeof body);
  return frame;
}

FrameHeader chunk_frame(const VersionId& id, const ArenaView& arena, const SlotView& slot, uint32_t chunk,
                        bool checksummed) {
  FrameHeader frame = make_frame(FrameType::kChunk, id.rank, id.epoch, id.version);
  frame.index = chunk;
  frame.length = arena.geometry().chunk(chunk).bytes;
  frame.data_crc = checksummed ? slot.table()[chunk] : 0;
  return frame;
}

FrameHeader blob_frame(const VersionId& id, uint64_t bytes, uint32_t crc) {
  FrameHeader frame = make_frame(FrameType::kBlob, id.rank, id.epoch, id.version);
  frame.length = bytes;
  frame.data_crc = crc;
  return frame;
}

}  // namespace ff
