// Where things lie in an arena: arithmetic only, derived from ff_arena_layout, equal in every process that maps the
// arena.
//
//   header page (its second half: notes of the worker, which the engine leaves alone) | journal copy 0 | journal copy 1 | slot 0 | slot 1 | ...
//   slot = header page | checksum table (4 bytes a chunk) | blob | payload
//   payload = sent part (replicas hold it) | local part (own slots only)
//
// Every region starts on a page. Chunks never cross from the sent into the local part, so a replica has the same sent
// chunks.
#pragma once
#include <cstdint>

#include "ff_engine.h"

namespace ff {

constexpr uint64_t kPage = 4096;

struct Range {
  uint64_t offset;
  uint64_t bytes;
};

class Geometry {
 public:
  explicit Geometry(const ff_arena_layout& layout);  // FF_EINVAL names the field, its value and what is allowed

  const ff_arena_layout& layout() const { return layout_; }
  uint64_t total_bytes() const { return total_; }
  uint64_t payload_bytes() const { return layout_.sent_bytes + layout_.local_bytes; }
  uint32_t sent_chunks() const { return sent_chunks_; }
  uint32_t chunks() const { return chunks_; }
  Range chunk(uint32_t index) const;  // place in the payload

  uint64_t journal_offset(uint32_t copy) const { return kPage + copy * journal_stride_; }
  uint64_t slot_offset(uint32_t slot) const { return kPage + 2 * journal_stride_ + slot * slot_stride_; }
  uint64_t table_offset() const { return kPage; }  // these three relative to the slot
  uint64_t blob_offset() const { return blob_; }
  uint64_t payload_offset() const { return payload_; }

 private:
  ff_arena_layout layout_;
  uint32_t sent_chunks_, chunks_;
  uint64_t journal_stride_, slot_stride_, blob_, payload_, total_;
};

}  // namespace ff
