// The gather kernel: copies tiles of scattered tensors into a staging buffer, with 16-byte stores and the widest loads
// that the source's address allows. A persistent kernel of the training cannot start while blocks of this one hold a
// multiprocessor, so it is made to be over soon: as many blocks as there are tiles, on the whole device. Built into a fat binary and loaded through the driver.
#include "device/gather.h"

namespace {

// 16 bytes from `from`, which is aligned for Word only.
template <class Word>
__device__ uint4 load16(const char* from) {
  union {
    Word words[16 / sizeof(Word)];
    uint4 all;
  } value;
#pragma unroll
  for (uint32_t i = 0; i < 16 / sizeof(Word); ++i) value.words[i] = reinterpret_cast<const Word*>(from)[i];
  return value.all;
}

// `to` is aligned to 16 bytes. Several loads are in flight before the first store.
template <class Word>
__device__ void copy_body(char* to, const char* from, uint32_t quads) {
  constexpr uint32_t kFlight = 4;
  auto* target = reinterpret_cast<uint4*>(to);
  uint32_t i = threadIdx.x;
  for (; i + (kFlight - 1) * blockDim.x < quads; i += kFlight * blockDim.x) {
    uint4 value[kFlight];
#pragma unroll
    for (uint32_t j = 0; j < kFlight; ++j) value[j] = load16<Word>(from + 16 * (i + j * blockDim.x));
#pragma unroll
    for (uint32_t j = 0; j < kFlight; ++j) target[i + j * blockDim.x] = value[j];
  }
  for (; i < quads; i += blockDim.x) target[i] = load16<Word>(from + 16 * i);
}

__device__ void copy_tile(char* to, const char* from, uint32_t bytes) {
  uint32_t head = (16 - static_cast<uint32_t>(reinterpret_cast<uint64_t>(to) % 16)) % 16;
  if (head > bytes) head = bytes;
  const uint32_t quads = (bytes - head) / 16, tail = (bytes - head) % 16;
  if (threadIdx.x < head) to[threadIdx.x] = from[threadIdx.x];
  if (threadIdx.x < tail) to[bytes - tail + threadIdx.x] = from[bytes - tail + threadIdx.x];
  to += head;
  from += head;
  const uint64_t skew = reinterpret_cast<uint64_t>(from) % 16;
  if (skew == 0) {
    copy_body<uint4>(to, from, quads);
  } else if (skew % 8 == 0) {
    copy_body<uint2>(to, from, quads);
  } else if (skew % 4 == 0) {
    copy_body<uint32_t>(to, from, quads);
  } else if (skew % 2 == 0) {
    copy_body<uint16_t>(to, from, quads);
  } else {
    copy_body<uint8_t>(to, from, quads);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(ff::kGatherThreads)
    ff_gather(const ff::GatherTile* tiles, uint32_t count, char* staging) {
  for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
    const ff::GatherTile tile = tiles[i];
    char* to = staging + tile.target;
    if (tile.source == 0) {
      for (uint32_t j = threadIdx.x; j < tile.bytes; j += blockDim.x) to[j] = 0;
    } else {
      copy_tile(to, reinterpret_cast<const char*>(tile.source), tile.bytes);
    }
  }
}
