// A slot holds one version of one rank's state: payload in chunks with a checksum each, and the blob with the scalars.
//
// States: EMPTY -> WRITING -> COMPLETE -> (WRITING | EMPTY). WRITING is stored before the first byte of a version,
// COMPLETE after the last, together with checksums of the table, the blob and the header itself. A slot whose writer
// died stays WRITING. Header fields are atomics because another process may look while one writes; a reader that raced
// with a writer sees the generation change and looks again.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ff_engine.h"
#include "slots/arena.h"

namespace ff {

struct SlotHeader {
  std::atomic<uint64_t> generation;  // bumped before (and by restamp also after) every change
  std::atomic<uint32_t> state;
  std::atomic<uint32_t> flags;
  std::atomic<uint64_t> epoch;
  std::atomic<int64_t> version;
  std::atomic<uint64_t> payload_bytes;  // filled prefix of the payload
  std::atomic<uint64_t> blob_bytes;
  std::atomic<uint32_t> blob_crc;
  std::atomic<uint32_t> table_crc;
  std::atomic<uint32_t> header_crc;  // of everything but generation and state
};

constexpr uint32_t kChecksummed = 1;  // flags: chunk checksums are present

// A header's fields at one moment.
struct SlotRecord {
  uint32_t state = FF_SLOT_EMPTY;
  uint32_t flags = 0;
  uint64_t epoch = 0;
  int64_t version = -1;
  uint64_t payload_bytes = 0;
  uint64_t blob_bytes = 0;
  uint32_t blob_crc = 0;
  uint32_t table_crc = 0;
};

inline uint64_t make_stamp(uint64_t epoch, int64_t version) {
  return epoch << 40 | static_cast<uint64_t>(version + 1);
}
// Throws `code` outside of what a stamp holds.
void check_stamp(uint64_t epoch, int64_t version, int code = FF_EINVAL);

class SlotView {
 public:
  SlotView(const ArenaView& arena, uint32_t slot);  // FF_EINVAL: no such slot

  SlotRecord record() const;           // FF_ECORRUPT: complete, but the header's checksum does not match
  SlotRecord complete_record() const;  // FF_ECORRUPT also when the slot is not complete

  void begin(uint64_t epoch, int64_t version);
  // payload_bytes: sent part only, or all of it.
  void finish(uint64_t payload_bytes, bool checksummed, uint64_t blob_bytes, uint32_t blob_crc);
  void empty();
  void restamp(uint64_t epoch);
  // See ff_slot_copy. This slot is the target.
  void take(const SlotView& source);

  // FF_ECORRUPT names slot, version and what does not match. Both need the record of a complete slot.
  void verify_head(const SlotRecord& record) const;  // table and blob
  void verify_chunk(const SlotRecord& record, uint32_t chunk) const;
  void verify() const;  // everything

  uint32_t filled_chunks(const SlotRecord& record) const;
  uint32_t index() const { return index_; }
  uint8_t* payload() const { return base_ + arena_->geometry().payload_offset(); }
  uint8_t* blob() const { return base_ + arena_->geometry().blob_offset(); }
  uint32_t* table() const { return reinterpret_cast<uint32_t*>(base_ + arena_->geometry().table_offset()); }

 private:
  SlotHeader& header() const { return *reinterpret_cast<SlotHeader*>(base_); }
  uint32_t record_crc(const SlotRecord& record) const;
  SlotRecord load() const;

  const ArenaView* arena_;
  uint32_t index_;
  uint8_t* base_;
};

}  // namespace ff
