#include "slots/slot.h"

#include <time.h>

#include "base/error.h"
#include "checksum/crc32c.h"

namespace ff {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

using ull = unsigned long long;

}  // namespace

void check_stamp(uint64_t epoch, int64_t version, int code) {
  constexpr uint64_t kEpochs = uint64_t{1} << 23;
  constexpr int64_t kVersions = (int64_t{1} << 40) - 1;
  if (epoch >= kEpochs) raise(code, "epoch is %llu, allowed are 0 to %llu", ull{epoch}, ull{kEpochs - 1});
  if (version < 0 || version >= kVersions) {
    raise(code, "version is %lld, allowed are 0 to %lld", static_cast<long long>(version),
          static_cast<long long>(kVersions - 1));
  }
}

SlotView::SlotView(const ArenaView& arena, uint32_t slot) : arena_(&arena), index_(slot), base_(nullptr) {
  if (slot >= arena.layout().slots)
    raise(FF_EINVAL, "slot is %u, the arena has slots 0 to %u", slot, arena.layout().slots - 1);
  base_ = arena.at(arena.geometry().slot_offset(slot));
}

uint32_t SlotView::record_crc(const SlotRecord& record) const {
  // Rank and index too: a header that belongs elsewhere must not pass.
  const uint64_t fields[] = {record.flags,
                             record.epoch,
                             static_cast<uint64_t>(record.version),
                             record.payload_bytes,
                             record.blob_bytes,
                             uint64_t{record.table_crc} << 32 | record.blob_crc,
                             uint64_t{arena_->layout().rank} << 32 | index_};
  return crc32c(0, fields, sizeof fields);
}

SlotRecord SlotView::load() const {
  const SlotHeader& h = header();
  SlotRecord r;
  r.state = h.state.load(kAcquire);
  r.flags = h.flags.load(kAcquire);
  r.epoch = h.epoch.load(kAcquire);
  r.version = h.version.load(kAcquire);
  r.payload_bytes = h.payload_bytes.load(kAcquire);
  r.blob_bytes = h.blob_bytes.load(kAcquire);
  r.blob_crc = h.blob_crc.load(kAcquire);
  r.table_crc = h.table_crc.load(kAcquire);
  return r;
}

SlotRecord SlotView::record() const {
  // A writer that is at it right now finishes within microseconds; damage stays.
  for (int attempt = 0; attempt < 50; ++attempt) {
    const uint64_t generation = header().generation.load(kAcquire);
    const SlotRecord r = load();
    const uint32_t crc = header().header_crc.load(kAcquire);
    if (r.state == FF_SLOT_EMPTY || r.state == FF_SLOT_WRITING) return r;
    const bool stable = header().generation.load(kAcquire) == generation;
    if (stable && r.state == FF_SLOT_COMPLETE && crc == record_crc(r) &&
        r.payload_bytes <= arena_->geometry().payload_bytes() && r.blob_bytes <= arena_->layout().blob_capacity) {
      return r;
    }
    const timespec pause{0, 100000};
    nanosleep(&pause, nullptr);
  }
  raise(FF_ECORRUPT, "slot %u of rank %u: header is damaged", index_, arena_->layout().rank);
}

SlotRecord SlotView::complete_record() const {
  const SlotRecord r = record();
  if (r.state != FF_SLOT_COMPLETE) {
    raise(FF_ECORRUPT, "slot %u of rank %u is %s, not complete", index_, arena_->layout().rank,
          r.state == FF_SLOT_EMPTY ? "empty" : "being written");
  }
  return r;
}

void SlotView::begin(uint64_t epoch, int64_t version) {
  SlotHeader& h = header();
  h.generation.fetch_add(1, std::memory_order_acq_rel);
  h.state.store(FF_SLOT_WRITING, std::memory_order_seq_cst);
  h.epoch.store(epoch, kRelease);
  h.version.store(version, kRelease);
  h.payload_bytes.store(0, kRelease);
  h.blob_bytes.store(0, kRelease);
}

void SlotView::finish(uint64_t payload_bytes, bool checksummed, uint64_t blob_bytes, uint32_t blob_crc) {
  SlotHeader& h = header();
  SlotRecord r;
  r.flags = checksummed ? kChecksummed : 0;
  r.epoch = h.epoch.load(kRelaxed);
  r.version = h.version.load(kRelaxed);
  r.payload_bytes = payload_bytes;
  r.blob_bytes = blob_bytes;
  r.blob_crc = blob_crc;
  r.table_crc = crc32c(0, table(), size_t{filled_chunks(r)} * 4);
  h.flags.store(r.flags, kRelease);
  h.payload_bytes.store(r.payload_bytes, kRelease);
  h.blob_bytes.store(r.blob_bytes, kRelease);
  h.blob_crc.store(r.blob_crc, kRelease);
  h.table_crc.store(r.table_crc, kRelease);
  h.header_crc.store(record_crc(r), kRelease);
  publish_stores();
  h.state.store(FF_SLOT_COMPLETE, std::memory_order_seq_cst);
}

void SlotView::empty() {
  header().generation.fetch_add(1, std::memory_order_acq_rel);
  header().state.store(FF_SLOT_EMPTY, std::memory_order_seq_cst);
}

void SlotView::restamp(uint64_t epoch) {
  SlotRecord r = complete_record();
  check_stamp(epoch, r.version);
  r.epoch = epoch;
  SlotHeader& h = header();
  h.generation.fetch_add(1, std::memory_order_acq_rel);
  h.epoch.store(epoch, kRelease);
  h.header_crc.store(record_crc(r), kRelease);
  h.generation.fetch_add(1, std::memory_order_acq_rel);
}

uint32_t SlotView::filled_chunks(const SlotRecord& record) const {
  const Geometry& g = arena_->geometry();
  return record.payload_bytes > arena_->layout().sent_bytes ? g.chunks() : g.sent_chunks();
}

void SlotView::verify_head(const SlotRecord& r) const {
  const char* what = nullptr;
  if (crc32c(0, blob(), r.blob_bytes) != r.blob_crc) what = "blob";
  if ((r.flags & kChecksummed) && crc32c(0, table(), size_t{filled_chunks(r)} * 4) != r.table_crc)
    what = "checksum table";
  if (what != nullptr) {
    raise(FF_ECORRUPT, "slot %u of rank %u, version (%llu, %lld): checksum of the %s does not match", index_,
          arena_->layout().rank, ull{r.epoch}, static_cast<long long>(r.version), what);
  }
}

void SlotView::verify_chunk(const SlotRecord& r, uint32_t chunk) const {
  if (!(r.flags & kChecksummed)) return;
  const Range range = arena_->geometry().chunk(chunk);
  if (crc32c(0, payload() + range.offset, range.bytes) == table()[chunk]) return;
  raise(FF_ECORRUPT,
        "slot %u of rank %u, version (%llu, %lld): checksum of chunk %u (payload bytes %llu to %llu) does not match",
        index_, arena_->layout().rank, ull{r.epoch}, static_cast<long long>(r.version), chunk, ull{range.offset},
        ull{range.offset + range.bytes});
}

void SlotView::verify() const {
  const SlotRecord r = complete_record();
  verify_head(r);
  for (uint32_t chunk = 0; chunk < filled_chunks(r); ++chunk) verify_chunk(r, chunk);
}

}  // namespace ff
