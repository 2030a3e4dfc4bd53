#include "transport_tcp.h"

#include <algorithm>

#include "crc32c.h"

namespace ff {
namespace {

// Received and checksummed in pieces of this size: small enough to be in the second-level cache still.
constexpr uint64_t kReceivePiece = 256 * 1024;

}  // namespace

void TcpTransport::start(const FrameHeader& header, const Patience& patience) {
  header_ = header;
  header_pending_ = true;
  if (header.length == 0) data(nullptr, 0, patience);
}

void TcpTransport::data(const void* piece, uint64_t bytes, const Patience& patience) {
  iovec parts[2] = {{&header_, sizeof header_}, {const_cast<void*>(piece), static_cast<size_t>(bytes)}};
  const int first = header_pending_ ? 0 : 1;
  header_pending_ = false;
  stream_.send(parts + first, 2 - first, patience);
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
