// TCP (or any other stream socket): headers and data one after the other, through the kernel's buffers.
//
// Data of CHUNKs and BLOBs of a checksummed version may leave without the kernel's copying them (ZeroCopy), where the
// sender says so: they lie in a slot. sendfile(2) from the arena's memory file, SO_RCVLOWAT and wider socket buffers
// were measured and brought nothing on loopback, see docs/benchmarks.md; and fixed buffers would end the kernel's own
// tuning on real networks.
#pragma once
#include "transport/stream.h"
#include "transport/transport.h"
#include "transport/wire.h"

namespace ff {

class TcpTransport : public Transport {
 public:
  enum class Slots { kCopied, kZeroCopy };  // what may become of data that lie in a slot
  explicit TcpTransport(UniqueFd fd, Slots slots = Slots::kCopied) : stream_(std::move(fd)) {
    if (slots == Slots::kZeroCopy) stream_.zero_copy().enable();
  }

  const char* name() const override { return "tcp"; }
  void start(const FrameHeader& header, const Patience& patience) override;
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;
  bool next(FrameHeader* header) override { return stream_.receive(header, sizeof *header); }
  uint32_t take(void* target, uint64_t bytes, bool checksum) override;
  size_t receive_some(void* target, size_t bytes) override;
  void shutdown() noexcept override { stream_.shutdown(); }
  int fd() const override { return stream_.fd(); }
  Usage take_usage() noexcept override { return {0, stream_.zero_copy().take_bytes()}; }

  // For the further streams of a connection, which see no BEGIN: the version that comes.
  void expect_version(bool checksummed) { checksummed_ = checksummed; }
  ZeroCopy& zero_copy() { return stream_.zero_copy(); }  // completions that nobody collects keep fd() ready

 private:
  Stream stream_;
  bool checksummed_ = false;
  FrameHeader header_{};  // started, and not sent before its first piece
  bool header_pending_ = false;
};

}  // namespace ff
