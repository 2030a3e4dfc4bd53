// UCX: RDMA where the cluster has it, tested over UCX's own TCP and shared memory.
//
// The authenticated TCP socket stays: it carries headers, everything small and the answers, and tells at once when the
// peer is gone, whatever UCX has noticed. The data of a CHUNK travel through a UcxPort on either side, in pieces that
// the receiver fetches into its slot; checksums, order and acknowledgement are those of every transport. The two ports
// learn each other's addresses from ADDRESS frames (docs/wire_format.md), the first in either direction.
#pragma once
#include <memory>

#include "transport_tcp.h"
#include "ucx_port.h"

namespace ff {

class UcxSender final : public TcpTransport {
 public:
  // Exchanges addresses with the receiver. FF_ETRANSPORT: one of the two cannot do it, or they cannot reach each other
  // this way; FF_EIO: the receiver is gone; FF_ETIMEOUT.
  UcxSender(UniqueFd socket, int64_t timeout_ms);
  ~UcxSender() override { release(); }

  const char* name() const override { return "ucx"; }
  void start(const FrameHeader& header, const Patience& patience) override;
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;
  size_t receive_some(void* target, size_t bytes) override;
  void release() noexcept override;
  int fd() const override { return events_.get(); }

 private:
  void introduce(const Deadline& end);
  FrameHeader await_answer(std::vector<uint8_t>* data, const Deadline& end);
  void await_sent(size_t left, const Patience& patience);  // until only so many pieces are on their way
  void work();  // all that there is to do; then fd() tells when there is more

  std::unique_ptr<UcxPort> port_;  // null: released
  UniqueFd events_;                // epoll: the socket and the port
  uint64_t missing_ = 0;           // bytes of the CHUNK that was started
};

class UcxReceiver final : public TcpTransport {
 public:
  explicit UcxReceiver(UniqueFd socket) : TcpTransport(std::move(socket)) {}
  ~UcxReceiver() override { release(); }

  const char* name() const override { return "ucx"; }
  bool next(FrameHeader* header) override;  // the first one after the addresses were exchanged; FF_ETRANSPORT then
  uint32_t take(void* target, uint64_t bytes, bool checksum) override;
  void release() noexcept override { UcxPort::dispose(std::move(port_)); }

 private:
  bool answer();  // to the sender's ADDRESS. False: it closed instead
  uint32_t fetch(uint8_t* target, uint64_t bytes, bool checksum);

  std::unique_ptr<UcxPort> port_;
  bool chunk_ = false;  // next() gave one
};

}  // namespace ff
