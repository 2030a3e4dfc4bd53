#include "device/device_restore.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace ff {
namespace {

constexpr uint64_t kBlock = 2 << 20;

// Adjacent pieces of segments, at most a block's span of the payload.
struct Block {
  uint64_t offset, bytes;
  std::vector<ff_segment> pieces;
};

std::vector<Block> cut(const std::vector<ff_segment>& segments) {
  std::vector<Block> blocks;
  for (const ff_segment& s : segments) {
    for (uint64_t at = 0; at < s.bytes;) {
      const uint64_t place = s.offset + at;
      if (blocks.empty() || place < blocks.back().offset || place >= blocks.back().offset + kBlock) {
        blocks.push_back({place, 0, {}});
      }
      Block& block = blocks.back();
      const uint64_t bytes = std::min(s.bytes - at, block.offset + kBlock - place);
      block.pieces.push_back({static_cast<uint8_t*>(s.ptr) + at, bytes, place, s.device, 0});
      block.bytes = std::max(block.bytes, place + bytes - block.offset);
      at += bytes;
    }
  }
  return blocks;
}

// One worker's stream and its two pinned buffers: one is filled while the other is uploaded.
class Lane {
 public:
  explicit Lane(Device& device) : device_(device), first_(device, true), second_(device, true), stream_(device) {
    buffers_ = static_cast<uint8_t*>(device.allocate_pinned(2 * kBlock));
  }
  ~Lane() {
    try {
      device_.synchronize(stream_.get());
    } catch (...) {  // the device is gone
    }
    device_.release_pinned(buffers_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void upload(const Block& block, const uint8_t* payload) {
    uint8_t* const buffer = buffers_ + half_ * kBlock;
    const OwnedEvent& uploaded = half_ == 0 ? first_ : second_;
    device_.await(uploaded.get());
    std::memcpy(buffer, payload + block.offset, block.bytes);
    for (const ff_segment& piece : block.pieces) {
      device_.upload(reinterpret_cast<DeviceAddress>(piece.ptr), buffer + (piece.offset - block.offset), piece.bytes,
                     stream_.get());
    }
    device_.record(uploaded.get(), stream_.get());
    half_ ^= 1;
  }
  void finish() { device_.synchronize(stream_.get()); }

 private:
  Device& device_;
  const OwnedEvent first_, second_;  // the buffers' last uploads
  OwnedStream stream_;
  uint8_t* buffers_ = nullptr;
  unsigned half_ = 0;
};

}  // namespace

void upload_segments(Device& device, const uint8_t* payload, std::vector<ff_segment> segments, Crew& crew) {
  std::sort(segments.begin(), segments.end(),
            [](const ff_segment& a, const ff_segment& b) { return a.offset < b.offset; });
  const std::vector<Block> blocks = cut(segments);
  std::vector<std::unique_ptr<Lane>> lanes;
  for (unsigned i = 0; i < crew.size(); ++i) lanes.push_back(std::make_unique<Lane>(device));
  device.settle();
  crew.start(static_cast<uint32_t>(blocks.size()),
             [&](uint32_t job, unsigned worker) { lanes[worker]->upload(blocks[job], payload); });
  crew.finish();
  for (auto& lane : lanes) lane->finish();
}

}  // namespace ff
