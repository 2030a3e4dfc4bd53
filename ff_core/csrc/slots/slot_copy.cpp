// One version from an arena into another one, while the first may be written: into a file's arena, or out of one.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "slots/slot.h"

namespace ff {
namespace {

using ull = unsigned long long;

// Whether the local part goes along. FF_EINVAL: the two are not for the same state.
bool with_local(const ff_arena_layout& from, const ff_arena_layout& to, const SlotRecord& record) {
  const bool has_local = record.payload_bytes > from.sent_bytes;
  if (from.rank != to.rank || from.sent_bytes != to.sent_bytes || from.chunk_bytes != to.chunk_bytes ||
      (has_local && to.local_bytes != 0 && from.local_bytes != to.local_bytes)) {
    raise(FF_EINVAL,
          "a slot of rank %u (%llu + %llu bytes, chunks of %llu) does not fit an arena of rank %u (%llu + %llu bytes, "
          "chunks of %llu)",
          from.rank, ull{from.sent_bytes}, ull{from.local_bytes}, ull{from.chunk_bytes}, to.rank, ull{to.sent_bytes},
          ull{to.local_bytes}, ull{to.chunk_bytes});
  }
  return has_local && to.local_bytes != 0;
}

}  // namespace

void SlotView::take(const SlotView& source) {
  empty();
  const uint64_t generation = source.header().generation.load(std::memory_order_acquire);
  const SlotRecord record = source.complete_record();
  const ff_arena_layout& from = source.arena_->layout();
  const bool local = with_local(from, arena_->layout(), record);
  if (!(record.flags & kChecksummed)) {
    raise(FF_EINVAL, "slot %u of rank %u has no checksums: it cannot be copied", source.index_, from.rank);
  }
  if (record.blob_bytes > arena_->layout().blob_capacity) {
    raise(FF_ENOSPACE, "rank %u: scalars of %llu bytes do not fit into %llu", from.rank, ull{record.blob_bytes},
          ull{arena_->layout().blob_capacity});
  }
  begin(record.epoch, record.version);
  const uint32_t chunks = local ? arena_->geometry().chunks() : arena_->geometry().sent_chunks();
  uint32_t good = 0;
  for (; good < chunks; ++good) {
    const Range range = arena_->geometry().chunk(good);
    const uint32_t crc = copy_crc32c_of_shared(0, payload() + range.offset, source.payload() + range.offset, range.bytes);
    table()[good] = crc;
    if (crc != source.table()[good]) break;
  }
  publish_stores();
  std::memcpy(blob(), source.blob(), record.blob_bytes);
  // A writer raises the generation before its first byte. A load would not keep the reads above from moving behind it;
  // adding nothing does. So would a fence, of which the thread sanitizer knows nothing.
  if (source.header().generation.fetch_add(0, std::memory_order_acq_rel) != generation) {
    empty();
    raise(FF_ECANCELLED, "slot %u of rank %u, version (%llu, %lld), was written anew while it was copied",
          source.index_, from.rank, ull{record.epoch}, static_cast<long long>(record.version));
  }
  if (good < chunks || crc32c(0, blob(), record.blob_bytes) != record.blob_crc) {
    empty();
    source.verify();  // says what is wrong
    raise(FF_ECORRUPT, "slot %u of rank %u changed while it was copied", source.index_, from.rank);
  }
  finish(local ? record.payload_bytes : from.sent_bytes, true, record.blob_bytes, record.blob_crc);
}

}  // namespace ff
