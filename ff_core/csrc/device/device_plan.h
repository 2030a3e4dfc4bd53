// The device plan: how the payload is put together from segments of which some lie on a device.
//
// The payload is cut into groups of whole chunks. An event says when a group has landed. Large pieces are downloaded as
// they are. Runs of small ones are gathered into a staging buffer first, so that ten thousand fragments cost as few
// transfers as one flat buffer. Pieces on the host, and holes that no gather fills, are written by the host.
#pragma once
#include <cstdint>
#include <vector>

#include "device/device.h"
#include "ff_engine.h"
#include "slots/layout.h"

namespace ff {

constexpr uint64_t kStagingBytes = 64 << 20;  // one gather, or less; half as much disturbs training more

struct DeviceOperation {
  uint64_t offset;       // in the payload
  uint64_t bytes;
  DeviceAddress source;  // tiles == 0: downloaded from here
  uint32_t first_tile;   // otherwise these tiles are gathered, and downloaded from `skew` bytes into the staging buffer
  uint32_t tiles;
  uint32_t skew;
};

struct HostPiece {
  const void* source;  // null: zeros
  uint64_t offset;
  uint64_t bytes;
};

struct CopyGroup {
  uint32_t end_chunk;      // first chunk behind the group; it starts where the one before ends
  size_t end_operation;    // likewise
};

class DevicePlan {
 public:
  // segments: by offset, none empty, no overlap, devices all equal or -1.
  DevicePlan(const std::vector<ff_segment>& segments, const Geometry& geometry, bool can_gather);

  const std::vector<CopyGroup>& groups() const { return groups_; }
  const std::vector<DeviceOperation>& operations() const { return operations_; }
  const std::vector<HostPiece>& host_pieces() const { return host_pieces_; }
  const std::vector<GatherTile>& tiles() const { return tiles_; }
  uint32_t group_of(uint32_t chunk) const { return group_of_[chunk]; }

 private:
  struct Part {
    DeviceAddress source;  // 0: a hole
    uint64_t offset, bytes;
  };
  void add_range(const std::vector<ff_segment>& segments, size_t* next, uint64_t start, uint64_t end);
  void add_small(const Part& part);
  void flush();  // the run of small parts becomes operations and host pieces
  void direct(const Part& part);
  void hole(const Part& part) { host_pieces_.push_back({nullptr, part.offset, part.bytes}); }
  void gather();

  const bool can_gather_;
  std::vector<Part> run_;  // adjacent small parts and holes
  std::vector<CopyGroup> groups_;
  std::vector<DeviceOperation> operations_;
  std::vector<HostPiece> host_pieces_;
  std::vector<GatherTile> tiles_;
  std::vector<uint32_t> group_of_;
};

}  // namespace ff
