#include <atomic>
#include <cstring>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "slots/arena.h"

namespace ff {
namespace {

// First page of a journal copy. sequence 0: never written; it is stored last, so that a half-written copy keeps the old
// one.
struct JournalHeader {
  std::atomic<uint64_t> sequence;
  std::atomic<uint64_t> bytes;
  std::atomic<uint32_t> crc;         // of the bytes
  std::atomic<uint32_t> header_crc;  // of sequence, bytes, crc
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "headers are shared between processes");

uint32_t header_crc(uint64_t sequence, uint64_t bytes, uint32_t crc) {
  const uint64_t fields[3] = {sequence, bytes, crc};
  return crc32c(0, fields, sizeof fields);
}

JournalHeader& header_of(const ArenaView& arena, uint32_t copy) {
  return *reinterpret_cast<JournalHeader*>(arena.at(arena.geometry().journal_offset(copy)));
}

uint8_t* data_of(const ArenaView& arena, uint32_t copy) {
  return arena.at(arena.geometry().journal_offset(copy) + kPage);
}

uint32_t newest(const ArenaView& arena) {
  return header_of(arena, 1).sequence.load(std::memory_order_acquire) >
         header_of(arena, 0).sequence.load(std::memory_order_acquire);
}

}  // namespace

void JournalView::set(const void* data, uint64_t bytes) {
  const uint64_t capacity = arena_.layout().journal_capacity;
  if (bytes > capacity) {
    raise(FF_ENOSPACE, "init journal of rank %u has %llu bytes, its arena holds %llu: raise the journal capacity",
          arena_.layout().rank, static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(capacity));
  }
  if (data == nullptr && bytes > 0)
    raise(FF_EINVAL, "journal data is null, bytes is %llu", static_cast<unsigned long long>(bytes));
  const uint32_t old = newest(arena_), copy = 1 - old;
  const uint64_t sequence = header_of(arena_, old).sequence.load(std::memory_order_relaxed) + 1;
  JournalHeader& header = header_of(arena_, copy);
  header.sequence.store(0, std::memory_order_release);
  if (bytes > 0) std::memcpy(data_of(arena_, copy), data, bytes);
  const uint32_t crc = crc32c(0, data, bytes);
  header.bytes.store(bytes, std::memory_order_relaxed);
  header.crc.store(crc, std::memory_order_relaxed);
  header.header_crc.store(header_crc(sequence, bytes, crc), std::memory_order_relaxed);
  header.sequence.store(sequence, std::memory_order_release);
}

uint64_t JournalView::sequence() const {
  return header_of(arena_, newest(arena_)).sequence.load(std::memory_order_acquire);
}

JournalView::Content JournalView::get() const {
  const uint32_t copy = newest(arena_);
  const JournalHeader& header = header_of(arena_, copy);
  const uint64_t sequence = header.sequence.load(std::memory_order_acquire);
  if (sequence == 0) return {data_of(arena_, copy), 0, 0};
  const uint64_t bytes = header.bytes.load(std::memory_order_relaxed);
  const uint32_t crc = header.crc.load(std::memory_order_relaxed);
  if (header.header_crc.load(std::memory_order_relaxed) != header_crc(sequence, bytes, crc) ||
      bytes > arena_.layout().journal_capacity) {
    raise(FF_ECORRUPT, "init journal of rank %u: header is damaged", arena_.layout().rank);
  }
  if (crc32c(0, data_of(arena_, copy), bytes) != crc) {
    raise(FF_ECORRUPT, "init journal of rank %u: checksum of its %llu bytes does not match", arena_.layout().rank,
          static_cast<unsigned long long>(bytes));
  }
  return {data_of(arena_, copy), bytes, sequence};
}

std::vector<uint8_t> JournalView::copy(uint64_t* sequence) const {
  const Content content = get();
  *sequence = content.sequence;
  return {content.data, content.data + content.bytes};
}

}  // namespace ff

extern "C" {

int ff_journal_set(void* base, const void* data, uint64_t bytes) {
  return ff::guarded([&] {
    const ff::ArenaView arena = ff::ArenaView::of(base);
    ff::JournalView(arena).set(data, bytes);
    return FF_OK;
  });
}

int ff_journal_get(const void* base, const void** data, uint64_t* bytes) {
  return ff::guarded([&] {
    if (data == nullptr || bytes == nullptr) ff::raise(FF_EINVAL, "journal: result pointer is null");
    const ff::ArenaView arena = ff::ArenaView::of(base);
    const auto content = ff::JournalView(arena).get();
    *data = content.data;
    *bytes = content.bytes;
    return FF_OK;
  });
}
}
