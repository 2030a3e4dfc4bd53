// Segments say where a rank's live tensors lie in memory and where their bytes belong in the payload.
//
// SegmentMap copies one chunk of the payload out of them. Many small segments cost as much as their bytes: neighbours
// are gathered into the slot while it is in the first-level cache, then checksummed in one go. Bytes no segment covers
// are written as zero. Segments on a device are copied by DeviceSource.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "ff_engine.h"
#include "slots/layout.h"

namespace ff {

// FF_EINVAL names segment `index` and what is wrong with it.
void check_segment(const ff_segment& segment, size_t index, uint64_t payload_bytes);

class SegmentMap {
 public:
  SegmentMap() = default;
  SegmentMap(const ff_segment* segments, size_t count,
             const Geometry& geometry);  // FF_EINVAL: out of range, overlapping, or on several devices

  // Copies chunk `chunk` to `target` and stores its CRC32C (0 if !checksum). Returns false, early, once *cancelled is
  // true.
  bool copy_chunk(uint32_t chunk, uint8_t* target, bool checksum, const std::atomic<bool>& cancelled,
                  uint32_t* crc) const;

  const std::vector<ff_segment>& segments() const { return segments_; }  // by offset, none empty
  int device() const { return device_; }                                 // -1: all on the host

 private:
  const Geometry* geometry_ = nullptr;
  int device_ = -1;
  std::vector<ff_segment> segments_;  // by offset, none empty
  std::vector<uint32_t> first_;       // per chunk: the first segment that ends behind the chunk's start
};

}  // namespace ff
