#include "transport/ucx.h"


#include <algorithm>

#include "checksum/crc32c.h"
#include "transport/ucx_introduction.h"
#include "transport/ucx_wait.h"

namespace ff {
namespace {

using ull = unsigned long long;

constexpr uint64_t kPiece = 256 * 1024;  // large enough for any network, small enough to be in the cache still

// Versions after which the next epoch's ports are made ahead: a recovery waits for the first one.
constexpr unsigned kSettled = 2;

bool is_chunk(const FrameHeader& header) {
  return header.type == static_cast<uint16_t>(FrameType::kChunk) && header.length > 0;
}

}  // namespace

void UcxSender::connect() {
  port_ = introduce(*this, timeout_ms_);
  events_ = any_readable({TcpTransport::fd(), port_->fd(), again_.fd()});
}

void UcxSender::release() noexcept {
  events_.reset();  // first: it watches a descriptor of the port's
  port_.reset();
}

void UcxSender::start(const FrameHeader& header, const Patience& patience) {
  missing_ = is_chunk(header) ? header.length : 0;
  // What follows another frame's header may fill the socket, which the receiver reads only when it has fetched all.
  if (missing_ == 0 && port_ != nullptr) await_sent(0, patience);
  TcpTransport::start(header, patience);
  if (missing_ > 0) TcpTransport::data(nullptr, 0, patience);  // the header alone
}

void UcxSender::data(const void* piece, uint64_t bytes, const Patience& patience) {
  if (missing_ == 0) {
    TcpTransport::data(piece, bytes, patience);
    return;
  }
  missing_ -= std::min(bytes, missing_);
  const auto* at = static_cast<const uint8_t*>(piece);
  while (bytes > 0) {
    await_sent(UcxPort::kWindow - 1, patience);
    const uint64_t part = std::min(bytes, kPiece);
    port_->send(at, part);
    at += part;
    bytes -= part;
  }
  // What is still on its way goes on while the caller waits for something else: fd() tells, receive_some() works.
  work();
}

void UcxSender::await_sent(size_t left, const Patience& patience) {
  uint64_t sent = port_->sent();
  Deadline stall = Deadline::after_ms(patience.stall_ms);
  UcxWait wait(*port_, TcpTransport::fd());
  while (port_->sending() > left) {
    wait.turn(100);
    if (port_->sent() != sent) {
      sent = port_->sent();
      stall = Deadline::after_ms(patience.stall_ms);
    } else if (stall.passed()) {
      raise(FF_ETIMEOUT, "send: the peer took no byte for %lld ms", static_cast<long long>(patience.stall_ms));
    }
    if (patience.end.passed()) raise(FF_ETIMEOUT, "send: deadline passed");
  }
}

size_t UcxSender::receive_some(void* target, size_t bytes) {
  // What the peer has said comes before what UCX thinks of its silence.
  if (const size_t got = TcpTransport::receive_some(target, bytes)) {
    ++answers_;
    return got;
  }
  if (answers_ >= kSettled && !prepared_) {
    prepared_ = true;
    UcxPort::prepare();
  }
  work();
  return 0;
}

void UcxSender::work() {
  again_.silence();
  for (unsigned turn = 0; port_->progress() || !port_->arm(); ++turn) {
    if (turn < UcxWait::kTurns) continue;
    again_.ring();  // there may be no end to it, and the caller has deadlines to look at
    return;
  }
}

bool UcxReceiver::next(FrameHeader* header) {
  if (port_ == nullptr && (port_ = answer(*this)) == nullptr) return false;
  if (versions_ >= kSettled && !prepared_) {
    prepared_ = true;
    UcxPort::prepare();
  }
  await_frame();
  if (!TcpTransport::next(header)) return false;
  if (header->type == static_cast<uint16_t>(FrameType::kBlob)) ++versions_;
  chunk_ = is_chunk(*header);
  return true;
}

// The sender may still wait for what UCX has to tell it of pieces that were fetched.
void UcxReceiver::await_frame() {
  try {
    UcxWait(*port_, TcpTransport::fd()).until_readable();
  } catch (const Error& error) {
    // UCX lost the peer: what that means the socket says, or the next CHUNK's fetch.
    if (error.code() != FF_EIO) throw;
  }
}

uint32_t UcxReceiver::take(void* target, uint64_t bytes, bool checksum) {
  if (!chunk_) return TcpTransport::take(target, bytes, checksum);
  try {
    return fetch(static_cast<uint8_t*>(target), bytes, checksum);
  } catch (...) {
    release();  // nothing is written into the slot after this
    throw;
  }
}

uint32_t UcxReceiver::fetch(uint8_t* target, uint64_t bytes, bool checksum) {
  uint32_t crc = 0;
  uint64_t asked = 0, done = 0;
  UcxWait wait(*port_, TcpTransport::fd());
  while (done < bytes) {
    while (asked < bytes && port_->announced() > 0) {
      const uint64_t piece = port_->announced();
      if (piece > bytes - asked) {
        raise(FF_EPROTO, "UCX piece of %llu bytes, %llu are missing", ull{piece}, ull{bytes - asked});
      }
      port_->fetch(target + asked);
      asked += piece;
    }
    if (const uint64_t piece = port_->fetched()) {
      if (checksum) crc = crc32c(crc, target + done, piece);
      done += piece;
    } else {
      wait.turn(-1);
    }
  }
  return crc;
}

}  // namespace ff
