#include "transport/tcp.h"

#include <algorithm>
#include <utility>

#include "checksum/crc32c.h"
#include "slots/slot.h"

namespace ff {
namespace {

// Received and checksummed in pieces of this size: small enough to be in the second-level cache still.
constexpr uint64_t kReceivePiece = 256 * 1024;

bool in_slot(const FrameHeader& header) {
  const auto type = static_cast<FrameType>(header.type);
  return type == FrameType::kChunk || type == FrameType::kBlob;
}

}  // namespace

void TcpTransport::start(const FrameHeader& header, const Patience& patience) {
  header_ = header;
  header_pending_ = true;
  if (header.type == static_cast<uint16_t>(FrameType::kBegin)) expect_version((header.flags & kChecksummed) != 0);
  if (header.length == 0) data(nullptr, 0, patience);
}

void TcpTransport::data(const void* piece, uint64_t bytes, const Patience& patience) {
  iovec parts[2] = {{&header_, sizeof header_}, {const_cast<void*>(piece), static_cast<size_t>(bytes)}};
  const bool pending = std::exchange(header_pending_, false);
  if (checksummed_ && in_slot(header_) && stream_.zero_copy().wants(bytes)) {
    // The header will be another frame's soon, so it is copied.
    if (pending) stream_.send(parts, 1, patience, Stream::Memory::kMayChange, true);
    stream_.send(parts + 1, 1, patience, Stream::Memory::kStays);
    return;
  }
  const int first = pending ? 0 : 1;
  stream_.send(parts + first, 2 - first, patience);
}

size_t TcpTransport::receive_some(void* target, size_t bytes) {
  zero_copy().collect();
  return stream_.receive_some(target, bytes);
}

uint32_t TcpTransport::take(void* target, uint64_t bytes, bool checksum) {
  auto* at = static_cast<uint8_t*>(target);
  uint32_t crc = 0;
  while (bytes > 0) {
    const uint64_t piece = std::min(bytes, kReceivePiece);
    if (!stream_.receive(at, piece)) raise(FF_EIO, "connection closed by the peer");
    if (checksum) crc = crc32c(crc, at, piece);
    at += piece;
    bytes -= piece;
  }
  return crc;
}

}  // namespace ff
