// UCX: RDMA where the cluster has it, tested over UCX's own TCP and shared memory.
//
// The authenticated TCP socket stays: it carries headers, everything small and the answers, and tells at once when the
// peer is gone, whatever UCX has noticed. The data of a CHUNK travel through a UcxPort on either side, in pieces that
// the receiver fetches into its slot; checksums, order and acknowledgement are those of every transport. The two ports
// learn each other's addresses from ADDRESS frames (docs/wire_format.md), the first in either direction.
#pragma once
#include <memory>

#include "transport/tcp.h"
#include "transport/ucx_port.h"

namespace ff {

class UcxSender final : public TcpTransport {
 public:
  // timeout_ms: for connect().
  UcxSender(UniqueFd socket, int64_t timeout_ms) : TcpTransport(std::move(socket)), timeout_ms_(timeout_ms) {}
  ~UcxSender() override { release(); }

  const char* name() const override { return "ucx"; }
  void connect() override;  // see introduce()
  void start(const FrameHeader& header, const Patience& patience) override;
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;
  size_t receive_some(void* target, size_t bytes) override;
  void release() noexcept override;
  int fd() const override { return events_.get(); }

 private:
  void await_sent(size_t left, const Patience& patience);  // until only so many pieces are on their way
  void work();  // what there is to do, but not for ever; fd() tells when there is more

  const int64_t timeout_ms_;
  UcxPort::Owner port_;  // null: not connected yet, or released
  Bell again_;           // work() left some
  UniqueFd events_;      // epoll: the socket, the port, the bell
  unsigned answers_ = 0;
  bool prepared_ = false;
  uint64_t missing_ = 0;           // bytes of the CHUNK that was started
};

class UcxReceiver final : public TcpTransport {
 public:
  explicit UcxReceiver(UniqueFd socket) : TcpTransport(std::move(socket)) {}
  ~UcxReceiver() override { release(); }

  const char* name() const override { return "ucx"; }
  bool next(FrameHeader* header) override;  // at first also answer()
  uint32_t take(void* target, uint64_t bytes, bool checksum) override;
  void release() noexcept override { port_.reset(); }

 private:
  void await_frame();
  uint32_t fetch(uint8_t* target, uint64_t bytes, bool checksum);

  UcxPort::Owner port_;
  bool chunk_ = false;  // next() gave one
  unsigned versions_ = 0;  // that have come to their end
  bool prepared_ = false;
};

}  // namespace ff
