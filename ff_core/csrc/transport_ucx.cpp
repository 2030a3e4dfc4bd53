#include "transport_ucx.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "crc32c.h"

namespace ff {
namespace {

using ull = unsigned long long;

constexpr uint64_t kPiece = 256 * 1024;      // large enough for any network, small enough to be in the cache still
constexpr uint64_t kMostAddress = 64 * 1024;  // bytes
constexpr int64_t kConnectMs = 10000;

bool is_chunk(const FrameHeader& header) {
  return header.type == static_cast<uint16_t>(FrameType::kChunk) && header.length > 0;
}

// A port's address and the token of this connection, as a frame.
void send_address(Transport& transport, uint64_t token, const std::vector<uint8_t>& address, const Patience& patience) {
  std::vector<uint8_t> body(sizeof token + address.size());
  std::memcpy(body.data(), &token, sizeof token);
  std::copy(address.begin(), address.end(), body.begin() + sizeof token);
  FrameHeader frame = make_frame(FrameType::kAddress, 0, 0, -1);
  frame.length = body.size();
  frame.data_crc = crc32c(0, body.data(), body.size());
  send_frame(transport, frame, body.data(), patience);
}

void check_length(const FrameHeader& frame, uint64_t least, uint64_t most) {
  if (frame.length >= least && frame.length <= most) return;
  raise(FF_EPROTO, "%s of %llu bytes, allowed are %llu to %llu", name_of(frame.type), ull{frame.length}, ull{least},
        ull{most});
}

uint64_t token_of(const std::vector<uint8_t>& body) {
  uint64_t token;
  std::memcpy(&token, body.data(), sizeof token);
  return token;
}

std::vector<uint8_t> address_of(const std::vector<uint8_t>& body) {
  return {body.begin() + sizeof(uint64_t), body.end()};
}

void expect_crc(const FrameHeader& frame, uint32_t crc) {
  if (crc == frame.data_crc) return;
  raise(FF_EPROTO, "%s: checksum is %#x, expected %#x", name_of(frame.type), crc, frame.data_crc);
}

// Sleeps until the port has something to do, or for `ms` (-1: without limit). FF_EIO: the peer has closed the socket.
void sleep(const UcxPort& port, int socket, int ms) {
  pollfd waits[2] = {{port.fd(), POLLIN, 0}, {socket, POLLRDHUP, 0}};
  if (::poll(waits, 2, ms) < 0 && errno != EINTR) raise_errno(errno, "poll");
  if (waits[1].revents != 0) raise(FF_EIO, "connection closed by the peer");
}

// Until the peer has been heard, or (`both`) has heard us, too. Looks at the socket first: where the peer is gone UCX
// shall not go on with it.
void await_connection(UcxPort& port, bool both, int socket, const Deadline& end) {
  while (both ? !port.connected() : !port.greeted()) {
    sleep(port, socket, 0);
    if (!port.progress() && port.arm()) sleep(port, socket, 100);
    if (end.passed()) raise(FF_ETRANSPORT, "the peer cannot be reached over UCX: no answer before the deadline");
  }
}

}  // namespace

UcxSender::UcxSender(UniqueFd socket, int64_t timeout_ms)
    : TcpTransport(std::move(socket)), port_(UcxPort::open()), events_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (events_.get() < 0) raise_errno(errno, "epoll_create1");
  for (const int fd : {TcpTransport::fd(), port_->fd()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) != 0) raise_errno(errno, "epoll_ctl");
  }
  try {
    introduce(Deadline::after_ms(timeout_ms));
  } catch (...) {
    release();
    throw;
  }
}

void UcxSender::release() noexcept {
  events_.reset();  // first: it watches a descriptor of the port's
  UcxPort::dispose(std::move(port_));
}

void UcxSender::introduce(const Deadline& end) {
  uint64_t token;
  if (::getrandom(&token, sizeof token, 0) != sizeof token) raise_errno(errno, "getrandom");
  const int64_t left_ms = std::max<int64_t>(1, end.left_ns() / 1000000);
  send_address(*this, token, port_->address(), {left_ms, end});
  std::vector<uint8_t> body;
  const FrameHeader answer = await_answer(&body, end);
  if (answer.type == static_cast<uint16_t>(FrameType::kReject)) {
    raise(FF_ETRANSPORT, "the holder refused UCX: %.*s", static_cast<int>(body.size()),
          reinterpret_cast<const char*>(body.data()));
  }
  if (token_of(body) != token) raise(FF_EPROTO, "ADDRESS with another connection's token");
  port_->connect(address_of(body), token);
  await_connection(*port_, true, TcpTransport::fd(), end);
}

FrameHeader UcxSender::await_answer(std::vector<uint8_t>* data, const Deadline& end) {
  FrameHeader frame;
  const auto receive = [&](void* target, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
      got += TcpTransport::receive_some(static_cast<uint8_t*>(target) + got, bytes - got);
      if (got == bytes) return;
      if (end.passed()) raise(FF_ETIMEOUT, "the holder's UCX address did not come before the deadline");
      pollfd wait{TcpTransport::fd(), POLLIN, 0};
      if (::poll(&wait, 1, end.poll_ms(100)) < 0 && errno != EINTR) raise_errno(errno, "poll");
    }
  };
  receive(&frame, sizeof frame);
  check_frame(frame);
  if (frame.type == static_cast<uint16_t>(FrameType::kReject)) {
    check_length(frame, 0, kMaxRejectText);
  } else if (frame.type == static_cast<uint16_t>(FrameType::kAddress)) {
    check_length(frame, sizeof(uint64_t) + 1, kMostAddress);
  } else {
    raise(FF_EPROTO, "%s frame instead of the holder's ADDRESS", name_of(frame.type));
  }
  data->resize(frame.length);
  receive(data->data(), data->size());
  expect_crc(frame, crc32c(0, data->data(), data->size()));
  return frame;
}

void UcxSender::start(const FrameHeader& header, const Patience& patience) {
  missing_ = is_chunk(header) ? header.length : 0;
  // What follows another frame's header may fill the socket, which the receiver reads only when it has fetched all.
  if (missing_ == 0) await_sent(0, patience);
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
  while (port_->sending() > left) {
    const bool idle = !port_->progress() && port_->arm();
    if (idle) sleep(*port_, TcpTransport::fd(), 100);
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
  if (const size_t got = TcpTransport::receive_some(target, bytes)) return got;
  work();
  return 0;
}

void UcxSender::work() {
  do {
    while (port_->progress()) {
    }
  } while (!port_->arm());
}

bool UcxReceiver::answer() {
  FrameHeader frame;
  if (!TcpTransport::next(&frame)) return false;
  check_frame(frame);
  if (frame.type != static_cast<uint16_t>(FrameType::kAddress)) {
    raise(FF_EPROTO, "%s frame instead of the sender's ADDRESS", name_of(frame.type));
  }
  check_length(frame, sizeof(uint64_t) + 1, kMostAddress);
  std::vector<uint8_t> body(frame.length);
  expect_crc(frame, TcpTransport::take(body.data(), body.size(), true));
  const Deadline end = Deadline::after_ms(kConnectMs);
  port_ = UcxPort::open();
  port_->expect(token_of(body));
  send_address(*this, token_of(body), port_->address(), {kConnectMs, end});
  await_connection(*port_, false, TcpTransport::fd(), end);
  port_->connect(address_of(body), token_of(body));
  await_connection(*port_, true, TcpTransport::fd(), end);
  return true;
}

bool UcxReceiver::next(FrameHeader* header) {
  if (port_ == nullptr && !answer()) return false;
  if (!TcpTransport::next(header)) return false;
  chunk_ = is_chunk(*header);
  return true;
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
    } else if (!port_->progress() && port_->arm()) {
      sleep(*port_, TcpTransport::fd(), -1);
    }
  }
  return crc;
}

}  // namespace ff
