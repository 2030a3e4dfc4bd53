// TCP (or any other stream socket): headers and data one after the other, through the kernel's buffers.
//
// sendfile(2) from the arena's memory file, SO_RCVLOWAT and wider socket buffers were measured and brought nothing on
// loopback, see docs/benchmarks.md; and fixed buffers would end the kernel's own tuning on real networks.
#pragma once
#include "stream.h"
#include "transport.h"
#include "wire.h"

namespace ff {

class TcpTransport : public Transport {
 public:
  explicit TcpTransport(UniqueFd fd) : stream_(std::move(fd)) {}

  const char* name() const override { return "tcp"; }
  void start(const FrameHeader& header, const Patience& patience) override;
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;
  bool next(FrameHeader* header) override { return stream_.receive(header, sizeof *header); }
  uint32_t take(void* target, uint64_t bytes, bool checksum) override;
  size_t receive_some(void* target, size_t bytes) override { return stream_.receive_some(target, bytes); }
  void shutdown() noexcept override { stream_.shutdown(); }
  int fd() const override { return stream_.fd(); }

 private:
  Stream stream_;
  FrameHeader header_{};  // started, and not sent before its first piece
  bool header_pending_ = false;
};

}  // namespace ff
