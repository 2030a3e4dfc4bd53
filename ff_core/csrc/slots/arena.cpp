#include "slots/arena.h"

#include <cstring>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "slots/slot.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arenas and frames are little-endian; this host is not");

namespace ff {
namespace {

constexpr uint64_t kMagic = 0x31616e6572614646;  // "FFarena1"

struct ArenaHeader {
  uint64_t magic;
  ff_arena_layout layout;
  uint32_t crc;  // of all before
  uint32_t reserved;
};
static_assert(sizeof(ArenaHeader) == 64, "the header's bytes are part of the format");

uint32_t header_crc(const ArenaHeader& header) {
  return crc32c(0, &header, offsetof(ArenaHeader, crc));
}

ArenaHeader read_header(const void* base) {
  if (base == nullptr) raise(FF_EINVAL, "arena address is null");
  if (reinterpret_cast<uintptr_t>(base) % 64 != 0)
    raise(FF_EINVAL, "arena address %p is not aligned to 64 bytes", base);
  ArenaHeader header;
  std::memcpy(&header, base, sizeof header);
  if (header.magic != kMagic) {
    raise(FF_ECORRUPT, "not an arena: magic is %#llx, expected %#llx", static_cast<unsigned long long>(header.magic),
          static_cast<unsigned long long>(kMagic));
  }
  if (header.crc != header_crc(header)) raise(FF_ECORRUPT, "arena header is damaged: its checksum does not match");
  return header;
}

}  // namespace

ArenaView::ArenaView(void* base, uint64_t bytes)
    : base_(static_cast<uint8_t*>(base)),
      geometry_((bytes < kPage ? raise(FF_ECORRUPT, "not an arena: %llu bytes are less than a page",
                                       static_cast<unsigned long long>(bytes))
                               : void(),
                 read_header(base).layout)) {
  if (geometry_.total_bytes() > bytes) {
    raise(FF_ECORRUPT, "arena of rank %u needs %llu bytes, but %llu are mapped", layout().rank,
          static_cast<unsigned long long>(geometry_.total_bytes()), static_cast<unsigned long long>(bytes));
  }
}

ArenaView ArenaView::of(const void* base) {
  return ArenaView(const_cast<void*>(base), UINT64_MAX);
}

void ArenaView::format(void* base, uint64_t bytes, const ff_arena_layout& layout) {
  const Geometry geometry(layout);
  if (base == nullptr || reinterpret_cast<uintptr_t>(base) % kPage != 0) {
    raise(FF_EINVAL, "arena address is %p, it must be aligned to %llu", base, static_cast<unsigned long long>(kPage));
  }
  if (bytes < geometry.total_bytes()) {
    raise(FF_ENOSPACE, "arena needs %llu bytes, got %llu", static_cast<unsigned long long>(geometry.total_bytes()),
          static_cast<unsigned long long>(bytes));
  }
  auto* at = static_cast<uint8_t*>(base);
  std::memset(at, 0, kPage);
  std::memset(at + geometry.journal_offset(0), 0, kPage);
  std::memset(at + geometry.journal_offset(1), 0, kPage);
  for (uint32_t slot = 0; slot < layout.slots; ++slot) std::memset(at + geometry.slot_offset(slot), 0, kPage);
  ArenaHeader header{};
  header.magic = kMagic;
  header.layout = layout;
  header.crc = header_crc(header);
  std::memcpy(base, &header, sizeof header);
}

}  // namespace ff

using ff::ArenaView;
using ff::guarded;

extern "C" {

uint64_t ff_arena_bytes(const ff_arena_layout* layout) {
  uint64_t total = 0;
  const int code = guarded([&] {
    if (layout == nullptr) ff::raise(FF_EINVAL, "layout is null");
    total = ff::Geometry(*layout).total_bytes();
    return FF_OK;
  });
  return code == FF_OK ? total : 0;
}

int ff_arena_format(void* base, uint64_t bytes, const ff_arena_layout* layout) {
  return guarded([&] {
    if (layout == nullptr) ff::raise(FF_EINVAL, "layout is null");
    ArenaView::format(base, bytes, *layout);
    return FF_OK;
  });
}

int ff_arena_check(const void* base, uint64_t bytes, ff_arena_layout* out) {
  return guarded([&] {
    const ArenaView arena(const_cast<void*>(base), bytes);
    if (out != nullptr) *out = arena.layout();
    return FF_OK;
  });
}
}
