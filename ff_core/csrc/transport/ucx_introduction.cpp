#include "transport/ucx_introduction.h"

#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "transport/ucx_wait.h"

namespace ff {
namespace {

using ull = unsigned long long;

constexpr uint64_t kMostAddress = 64 * 1024;  // bytes
constexpr int64_t kConnectMs = 10000;         // for the receiver; the sender has its caller's limit
constexpr int64_t kGraceMs = 500;             // where a peer dies UCX may fail before its socket tells

// A port's address and the token of this connection, as a frame.
void send_address(Transport& socket, uint64_t token, const std::vector<uint8_t>& address, const Patience& patience) {
  std::vector<uint8_t> body(sizeof token + address.size());
  std::memcpy(body.data(), &token, sizeof token);
  std::copy(address.begin(), address.end(), body.begin() + sizeof token);
  FrameHeader frame = make_frame(FrameType::kAddress, 0, 0, -1);
  frame.length = body.size();
  frame.data_crc = crc32c(0, body.data(), body.size());
  send_frame(socket, frame, body.data(), patience);
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

[[noreturn]] void no_way(const std::string& why, const std::string& tried) {
  raise(FF_ETRANSPORT, "UCX cannot connect the two hosts: %s; %s", why.c_str(), tried.c_str());
}

// What the sender's user wants to know, too.
std::string here() {
  return "this host has " + ucx_settings() + "; without UCX: \"transport\": \"auto\" or \"tcp\"";
}

// Until the peer has been heard, or (`both`) has heard us, too. FF_EIO: the socket has ended, or UCX failed.
void await_connection(UcxPort& port, bool both, int socket, const Deadline& end) {
  UcxWait wait(port, socket, 1);
  while (both ? !port.connected() : !port.greeted()) {
    wait.turn(100);
    if (end.passed()) raise(FF_ETIMEOUT, "no answer before the deadline");
  }
}

// The body of the holder's ADDRESS. FF_ETRANSPORT: its REJECT came.
std::vector<uint8_t> await_answer(TcpTransport& socket, const Deadline& end) {
  FrameHeader frame;
  std::vector<uint8_t> data;
  const auto receive = [&](void* target, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
      got += socket.TcpTransport::receive_some(static_cast<uint8_t*>(target) + got, bytes - got);
      if (got == bytes) return;
      if (end.passed()) raise(FF_ETIMEOUT, "the holder's UCX address did not come before the deadline");
      pollfd wait{socket.TcpTransport::fd(), POLLIN, 0};
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
  data.resize(frame.length);
  receive(data.data(), data.size());
  expect_crc(frame, crc32c(0, data.data(), data.size()));
  if (frame.type == static_cast<uint16_t>(FrameType::kReject)) {
    raise(FF_ETRANSPORT, "the holder refused UCX: %.*s; %s", static_cast<int>(data.size()),
          reinterpret_cast<const char*>(data.data()), here().c_str());
  }
  return data;
}

// The connection was not made, or broke while it was: if the holder has said why, or is gone, that is the error.
void ask_holder(TcpTransport& socket) {
  try {
    await_answer(socket, Deadline::after_ms(kGraceMs));
  } catch (const Error& error) {
    if (error.code() != FF_ETIMEOUT) throw;
  }
}

bool ends_within_grace(int socket) {
  pollfd wait{socket, POLLRDHUP, 0};
  return ::poll(&wait, 1, kGraceMs) > 0;
}

// As the sender.
void introduce(UcxPort& port, TcpTransport& socket, const Deadline& end) {
  uint64_t token;
  if (::getrandom(&token, sizeof token, 0) != sizeof token) raise_errno(errno, "getrandom");
  const int64_t left_ms = std::max<int64_t>(1, end.left_ns() / 1000000);
  send_address(socket, token, port.address(), {left_ms, end});
  const std::vector<uint8_t> body = await_answer(socket, end);
  if (token_of(body) != token) raise(FF_EPROTO, "ADDRESS with another connection's token");
  try {
    port.connect(address_of(body), token);
    await_connection(port, true, socket.TcpTransport::fd(), end);
  } catch (const Error& error) {
    if (error.code() == FF_EPROTO) throw;
    ask_holder(socket);
    no_way(error.what(), here());
  }
}

// As the receiver.
void answer(UcxPort& port, TcpTransport& socket, const std::vector<uint8_t>& body) {
  const Deadline end = Deadline::after_ms(kConnectMs);
  port.expect(token_of(body));
  send_address(socket, token_of(body), port.address(), {kConnectMs, end});
  try {
    await_connection(port, false, socket.TcpTransport::fd(), end);
    port.connect(address_of(body), token_of(body));
    await_connection(port, true, socket.TcpTransport::fd(), end);
  } catch (const Error& error) {
    if (error.code() == FF_EPROTO) throw;
    if (ends_within_grace(socket.TcpTransport::fd())) raise(FF_EIO, "connection closed by the peer");
    no_way(error.what(), "the holder has " + ucx_settings());
  }
}

}  // namespace

UcxPort::Owner introduce(TcpTransport& socket, int64_t timeout_ms) {
  const Deadline end = Deadline::after_ms(timeout_ms);
  UcxPort::Owner port = UcxPort::open();
  introduce(*port, socket, end);
  return port;
}

UcxPort::Owner answer(TcpTransport& socket) {
  UcxPort::Owner port;
  std::optional<Error> failure;
  try {
    port = UcxPort::open();  // now, while the sender makes its own
  } catch (const Error& error) {
    failure = error;
  }
  FrameHeader frame;
  if (!socket.TcpTransport::next(&frame)) return nullptr;
  check_frame(frame);
  if (frame.type != static_cast<uint16_t>(FrameType::kAddress)) {
    raise(FF_EPROTO, "%s frame instead of the sender's ADDRESS", name_of(frame.type));
  }
  check_length(frame, sizeof(uint64_t) + 1, kMostAddress);
  std::vector<uint8_t> body(frame.length);
  expect_crc(frame, socket.TcpTransport::take(body.data(), body.size(), true));
  if (failure) throw *failure;  // not sooner: an ADDRESS that nobody reads would take the answer with it
  answer(*port, socket, body);
  return port;
}

}  // namespace ff
