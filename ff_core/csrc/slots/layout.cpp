#include "slots/layout.h"

#include "base/error.h"

namespace ff {
namespace {

constexpr uint64_t kMaxPart = uint64_t{1} << 46;  // 64 TiB: far from overflow in every sum below
constexpr uint64_t kMaxBlob = uint64_t{1} << 34;
constexpr uint64_t kMaxChunk = uint64_t{1} << 30;

uint64_t to_page(uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

void check(const char* field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return;
  raise(FF_EINVAL, "arena layout: %s is %llu, allowed are %llu to %llu", field, static_cast<unsigned long long>(value),
        static_cast<unsigned long long>(low), static_cast<unsigned long long>(high));
}

}  // namespace

Geometry::Geometry(const ff_arena_layout& layout) : layout_(layout) {
  check("slots", layout.slots, 1, 16);
  check("sent_bytes", layout.sent_bytes, 0, kMaxPart);
  check("local_bytes", layout.local_bytes, 0, kMaxPart);
  check("blob_capacity", layout.blob_capacity, 0, kMaxBlob);
  check("journal_capacity", layout.journal_capacity, 0, kMaxBlob);
  check("chunk_bytes", layout.chunk_bytes, kPage, kMaxChunk);
  if (layout.chunk_bytes % kPage != 0) {
    raise(FF_EINVAL, "arena layout: chunk_bytes is %llu, allowed are multiples of %llu",
          static_cast<unsigned long long>(layout.chunk_bytes), static_cast<unsigned long long>(kPage));
  }
  const uint64_t sent = (layout.sent_bytes + layout.chunk_bytes - 1) / layout.chunk_bytes;
  const uint64_t local = (layout.local_bytes + layout.chunk_bytes - 1) / layout.chunk_bytes;
  if (sent + local > UINT32_MAX) {
    raise(FF_EINVAL, "arena layout: %llu chunks of %llu bytes, allowed are at most %u chunks: raise chunk_bytes",
          static_cast<unsigned long long>(sent + local), static_cast<unsigned long long>(layout.chunk_bytes),
          UINT32_MAX);
  }
  sent_chunks_ = static_cast<uint32_t>(sent);
  chunks_ = static_cast<uint32_t>(sent + local);
  journal_stride_ = kPage + to_page(layout.journal_capacity);
  blob_ = kPage + to_page(uint64_t{chunks_} * 4);
  payload_ = blob_ + to_page(layout.blob_capacity);
  slot_stride_ = payload_ + to_page(payload_bytes());
  total_ = slot_offset(layout.slots);
}

Range Geometry::chunk(uint32_t index) const {
  const bool sent = index < sent_chunks_;
  const uint64_t start = sent ? 0 : layout_.sent_bytes;
  const uint64_t part = sent ? layout_.sent_bytes : layout_.local_bytes;
  const uint64_t within = (sent ? index : index - sent_chunks_) * layout_.chunk_bytes;
  const uint64_t left = part - within;
  return {start + within, left < layout_.chunk_bytes ? left : layout_.chunk_bytes};
}

}  // namespace ff
