#include "slots/segments.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "checksum/crc32c.h"

namespace ff {
namespace {

using ull = unsigned long long;

constexpr size_t kGather = 16384;       // bytes gathered before they are checksummed: half a first-level cache
constexpr size_t kFused = 16384;        // pieces from here on take the fused copy
constexpr size_t kBlock = 1024 * 1024;  // between two looks at the cancel flag

// Writes pieces to consecutive addresses and keeps the checksum up to date.
class Output {
 public:
  Output(uint8_t* target, bool checksum) : at_(target), pending_(target), checksum_(checksum) {}

  void copy(const uint8_t* from, size_t bytes) {
    if (bytes >= kFused && checksum_) {
      settle();
      crc_ = copy_crc32c(crc_, at_, from, bytes);
      at_ += bytes;
      pending_ = at_;
      return;
    }
    std::memcpy(at_, from, bytes);
    advance(bytes);
  }

  void zero(size_t bytes) {
    while (bytes > 0) {
      const size_t part = std::min(bytes, kGather);
      std::memset(at_, 0, part);
      advance(part);
      bytes -= part;
    }
  }

  uint32_t finish() {
    settle();
    return crc_;
  }

 private:
  void advance(size_t bytes) {
    at_ += bytes;
    if (static_cast<size_t>(at_ - pending_) >= kGather) settle();
  }
  void settle() {
    if (checksum_) crc_ = crc32c(crc_, pending_, static_cast<size_t>(at_ - pending_));
    pending_ = at_;
  }

  uint8_t* at_;
  uint8_t* pending_;  // start of what was copied but not yet checksummed
  bool checksum_;
  uint32_t crc_ = 0;
};

}  // namespace

void check_segment(const ff_segment& s, size_t index, uint64_t payload_bytes) {
  if (s.device < -1) {
    raise(FF_EINVAL, "segment %zu: device is %d, allowed are -1 (host memory) and CUDA devices from 0", index, s.device);
  }
  if (s.bytes > payload_bytes || s.offset > payload_bytes - s.bytes) {
    raise(FF_EINVAL, "segment %zu: %llu bytes at offset %llu, the payload has %llu bytes", index, ull{s.bytes},
          ull{s.offset}, ull{payload_bytes});
  }
  if (s.ptr == nullptr && s.bytes > 0)
    raise(FF_EINVAL, "segment %zu: %llu bytes at a null pointer", index, ull{s.bytes});
}

SegmentMap::SegmentMap(const ff_segment* segments, size_t count, const Geometry& geometry) : geometry_(&geometry) {
  if (count >= UINT32_MAX) raise(FF_EINVAL, "%zu segments, allowed are fewer than %u", count, UINT32_MAX);
  segments_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    check_segment(segments[i], i, geometry.payload_bytes());
    if (segments[i].bytes == 0) continue;
    segments_.push_back(segments[i]);
    if (segments[i].device == -1) continue;
    if (device_ >= 0 && segments[i].device != device_) {
      raise(FF_EINVAL, "segment %zu: device is %d, others are on device %d; one rank's state may lie on one device",
            i, segments[i].device, device_);
    }
    device_ = segments[i].device;
  }
  std::sort(segments_.begin(), segments_.end(),
            [](const ff_segment& a, const ff_segment& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < segments_.size(); ++i) {
    const ff_segment &a = segments_[i - 1], &b = segments_[i];
    if (a.offset + a.bytes > b.offset) {
      raise(FF_EINVAL, "segments overlap: %llu bytes at offset %llu and %llu bytes at offset %llu", ull{a.bytes},
            ull{a.offset}, ull{b.bytes}, ull{b.offset});
    }
  }
  first_.reserve(geometry.chunks());
  uint32_t segment = 0;
  for (uint32_t chunk = 0; chunk < geometry.chunks(); ++chunk) {
    const uint64_t start = geometry.chunk(chunk).offset;
    while (segment < segments_.size() && segments_[segment].offset + segments_[segment].bytes <= start) ++segment;
    first_.push_back(segment);
  }
}

bool SegmentMap::copy_chunk(uint32_t chunk, uint8_t* target, bool checksum, const std::atomic<bool>& cancelled,
                            uint32_t* crc) const {
  const Range range = geometry_->chunk(chunk);
  const uint64_t end = range.offset + range.bytes;
  Output output(target, checksum);
  uint64_t at = range.offset;
  size_t since_look = kBlock;
  for (size_t i = first_[chunk]; at < end;) {
    if (since_look >= kBlock) {
      if (cancelled.load(std::memory_order_relaxed)) return false;
      since_look = 0;
    }
    size_t piece;
    if (i == segments_.size() || segments_[i].offset > at) {
      piece = static_cast<size_t>(std::min(i == segments_.size() ? end : segments_[i].offset, end) - at);
      output.zero(piece);
    } else {
      const ff_segment& s = segments_[i];
      piece = static_cast<size_t>(std::min({s.offset + s.bytes, end, at + kBlock}) - at);
      output.copy(static_cast<const uint8_t*>(s.ptr) + (at - s.offset), piece);
      if (at + piece == s.offset + s.bytes) ++i;
    }
    at += piece;
    since_look += piece;
  }
  *crc = output.finish();
  return true;
}

}  // namespace ff
