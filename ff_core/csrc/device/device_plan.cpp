#include "device/device_plan.h"

#include <algorithm>

namespace ff {
namespace {

constexpr uint64_t kDirectBytes = 1 << 20;      // a transfer of that size hides its own cost
constexpr uint64_t kLargeHole = 65536;          // not worth staging memory
constexpr uint64_t kSmallGroup = 4 << 20;
constexpr uint64_t kLargeGroup = 64 << 20;
constexpr uint64_t kSkew = 64;  // staged bytes keep their payload's place in a line

// Groups grow from the start, so that checksums and sockets begin early, and shrink towards the end, so that little is
// left to checksum when the last one lands. In between they are few: a device's queue takes some hundred operations,
// and whoever adds more waits for the device.
uint64_t group_bytes(uint64_t done, uint64_t total) {
  const uint64_t largest = std::max(kLargeGroup, total / 64);
  return std::max(kSmallGroup, std::min({done, (total - done) / 8, largest}));
}

}  // namespace

DevicePlan::DevicePlan(const std::vector<ff_segment>& segments, const Geometry& geometry, bool can_gather)
    : can_gather_(can_gather) {
  size_t next = 0;
  for (uint32_t chunk = 0; chunk < geometry.chunks();) {
    const uint64_t start = geometry.chunk(chunk).offset;
    const uint64_t wanted = group_bytes(start, geometry.payload_bytes());
    uint64_t end = start;
    for (; chunk < geometry.chunks() && end - start < wanted; ++chunk) {
      end += geometry.chunk(chunk).bytes;
      group_of_.push_back(static_cast<uint32_t>(groups_.size()));
    }
    add_range(segments, &next, start, end);
    groups_.push_back({chunk, operations_.size()});
  }
}

void DevicePlan::add_range(const std::vector<ff_segment>& segments, size_t* next, uint64_t start, uint64_t end) {
  for (uint64_t at = start; at < end;) {
    if (*next == segments.size() || segments[*next].offset > at) {
      const uint64_t to = *next == segments.size() ? end : std::min(end, segments[*next].offset);
      add_small({0, at, to - at});
      at = to;
      continue;
    }
    const ff_segment& s = segments[*next];
    const uint64_t to = std::min(end, s.offset + s.bytes);
    auto* const from = static_cast<const uint8_t*>(s.ptr) + (at - s.offset);
    const Part part{reinterpret_cast<DeviceAddress>(from), at, to - at};
    if (s.device == -1) {
      flush();
      host_pieces_.push_back({from, at, to - at});
    } else if (part.bytes >= kDirectBytes) {
      flush();
      direct(part);
    } else {
      add_small(part);
    }
    at = to;
    if (at == s.offset + s.bytes) ++*next;
  }
  flush();
}

void DevicePlan::add_small(const Part& part) {
  if (part.source == 0 && part.bytes >= kLargeHole) {
    flush();
    hole(part);
    return;
  }
  // Cut where the staging buffer is full, at a page's start.
  const uint64_t start = run_.empty() ? part.offset : run_.front().offset;
  const uint64_t limit = start / kPage * kPage + kStagingBytes;
  const uint64_t fits = std::min(part.bytes, limit - part.offset);
  run_.push_back({part.source, part.offset, fits});
  if (fits == part.bytes) return;
  flush();
  add_small({part.source == 0 ? 0 : part.source + fits, part.offset + fits, part.bytes - fits});
}

void DevicePlan::flush() {
  while (!run_.empty() && run_.back().source == 0) {
    hole(run_.back());
    run_.pop_back();
  }
  const auto first = std::find_if(run_.begin(), run_.end(), [](const Part& part) { return part.source != 0; });
  std::for_each(run_.begin(), first, [this](const Part& part) { hole(part); });
  run_.erase(run_.begin(), first);
  if (can_gather_ && run_.size() > 1) {
    gather();
  } else {
    for (const Part& part : run_) part.source == 0 ? hole(part) : direct(part);
  }
  run_.clear();
}

void DevicePlan::direct(const Part& part) {
  operations_.push_back({part.offset, part.bytes, part.source, 0, 0, 0});
}

void DevicePlan::gather() {
  const uint64_t start = run_.front().offset, end = run_.back().offset + run_.back().bytes;
  const auto skew = static_cast<uint32_t>(start % kSkew);
  const auto first = static_cast<uint32_t>(tiles_.size());
  for (const Part& part : run_) {
    for (uint64_t at = 0; at < part.bytes; at += kTileBytes) {
      tiles_.push_back({part.source == 0 ? 0 : part.source + at,
                        static_cast<uint32_t>(skew + (part.offset - start) + at),
                        static_cast<uint32_t>(std::min<uint64_t>(kTileBytes, part.bytes - at))});
    }
  }
  operations_.push_back({start, end - start, 0, first, static_cast<uint32_t>(tiles_.size()) - first, skew});
}

}  // namespace ff
