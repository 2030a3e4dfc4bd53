// The gather kernel's contract, shared by host and device code: tiles are pieces of scattered tensors that lie side by
// side in a staging buffer. A tile is small, so that many blocks share the work evenly whatever the tensors' sizes are.
#pragma once
#include <stdint.h>

namespace ff {

struct GatherTile {
  uint64_t source;  // device address; 0: the tile is filled with zeros
  uint32_t target;  // offset in the staging buffer
  uint32_t bytes;
};

constexpr uint32_t kTileBytes = 32768;
constexpr uint32_t kGatherThreads = 512;  // of a block
constexpr uint32_t kGatherBlocks = 4096;  // at most; a block takes tile after tile if there are more
constexpr char kGatherKernel[] = "ff_gather";

}  // namespace ff
