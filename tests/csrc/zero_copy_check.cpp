// Sends without copying, over loopback: what the kernel says, what comes of it, and that every byte arrives.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "slots/slot.h"
#include "transport/tcp.h"

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                             \
    }                                                                           \
  } while (0)

namespace {

struct Sockets {
  ff::UniqueFd near, far;
};

Sockets tcp() {
  ff::UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* plain = reinterpret_cast<sockaddr*>(&address);
  CHECK(::bind(listener.get(), plain, sizeof address) == 0 && ::listen(listener.get(), 1) == 0);
  socklen_t size = sizeof address;
  CHECK(::getsockname(listener.get(), plain, &size) == 0);
  Sockets out{ff::UniqueFd(::socket(AF_INET, SOCK_STREAM, 0)), ff::UniqueFd()};
  CHECK(::connect(out.near.get(), plain, sizeof address) == 0);
  out.far = ff::UniqueFd(::accept(listener.get(), nullptr, nullptr));
  CHECK(out.far.get() >= 0);
  return out;
}

Sockets local() {
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  return {ff::UniqueFd(fds[0]), ff::UniqueFd(fds[1])};
}

std::vector<uint8_t> pattern(size_t bytes) {
  std::vector<uint8_t> out(bytes);
  for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(i * 31 + (i >> 12));
  return out;
}

const ff::Patience kPatience{60000, ff::Deadline::never()};

void send(ff::Stream& stream, const std::vector<uint8_t>& data) {
  iovec part{const_cast<uint8_t*>(data.data()), data.size()};
  stream.send(&part, 1, kPatience, ff::Stream::Memory::kStays);
}

// Everything arrives as it was, `rounds` times.
void exchange(ff::Stream& stream, int far, const std::vector<uint8_t>& data, int rounds) {
  std::thread reader([&] {
    std::vector<uint8_t> got(data.size());
    for (int round = 0; round < rounds; ++round) {
      CHECK(::recv(far, got.data(), got.size(), MSG_WAITALL) == static_cast<ssize_t>(got.size()));
      CHECK(got == data);
    }
  });
  for (int round = 0; round < rounds; ++round) send(stream, data);
  reader.join();
}

// Until the socket's descriptor is quiet again: its completions have been collected.
bool quiet(ff::Stream& stream) {
  for (int i = 0; i < 1000; ++i) {
    stream.zero_copy().collect();
    pollfd wait{stream.fd(), POLLIN, 0};
    if (::poll(&wait, 1, 10) == 0) return true;
  }
  return false;
}

// Loopback copies: one trial, then never again on this socket.
void loopback() {
  Sockets pair = tcp();
  ff::Stream stream(std::move(pair.near));
  stream.zero_copy().enable();
  const auto data = pattern(3 << 20);
  std::atomic<bool> done{false};
  std::thread waiter([&] {  // as the thread that waits for answers
    while (!done) quiet(stream);
  });
  exchange(stream, pair.far.get(), data, 4);
  done = true;
  waiter.join();
  CHECK(quiet(stream));
  CHECK(stream.zero_copy().trials() == 1);
  CHECK(stream.zero_copy().given_up());
  CHECK(stream.zero_copy().take_bytes() == 0);
  exchange(stream, pair.far.get(), data, 2);
  CHECK(stream.zero_copy().trials() == 1);
}

// Small pieces, and sockets that were not asked to, are copied from the start.
void never_tried() {
  for (const bool enabled : {false, true}) {
    Sockets pair = tcp();
    ff::Stream stream(std::move(pair.near));
    if (enabled) stream.zero_copy().enable();
    exchange(stream, pair.far.get(), pattern(enabled ? ff::ZeroCopy::kLeast - 1 : 1 << 20), 3);
    CHECK(stream.zero_copy().trials() == 0 && !stream.zero_copy().given_up());
  }
  Sockets pair = local();  // no TCP
  ff::Stream stream(std::move(pair.near));
  stream.zero_copy().enable();
  exchange(stream, pair.far.get(), pattern(1 << 20), 3);
  CHECK(stream.zero_copy().trials() == 0);
}

// What an adapter would do that can gather: completions in any order, also before the sender has noted the send.
void completions() {
  constexpr uint64_t kMuch = 1 << 20;
  Sockets pair = tcp();
  ff::ZeroCopy state(pair.near.get());
  CHECK(!state.wants(kMuch));
  state.enable();
  CHECK(!state.wants(ff::ZeroCopy::kLeast - 1) && state.wants(kMuch));
  state.sent(100);
  CHECK(!state.wants(kMuch));  // one at a time, until it is known
  state.complete(0, 0, false);
  CHECK(state.take_bytes() == 100 && state.take_bytes() == 0);
  for (uint64_t number = 1; number <= 5; ++number) {
    CHECK(state.wants(kMuch));
    state.sent(number * 1000);
  }
  state.complete(3, 4, false);
  CHECK(state.take_bytes() == 0);  // in order
  state.complete(1, 2, false);
  CHECK(state.take_bytes() == 10000);
  state.complete(5, 6, false);  // 6 is still in send(2)
  CHECK(state.take_bytes() == 5000);
  state.sent(70);
  CHECK(state.take_bytes() == 70);
  state.sent(80);
  state.sent(90);
  state.complete(7, 7, true);
  CHECK(!state.wants(kMuch) && state.given_up());
  state.complete(8, 8, false);
  CHECK(state.take_bytes() == 90 && state.given_up());
}

void refusals() {
  Sockets pair = tcp();
  ff::ZeroCopy full(pair.near.get());
  full.enable();
  CHECK(!full.refused(EPIPE) && !full.given_up());
  full.sent(100);
  CHECK(full.refused(ENOBUFS) && !full.given_up());  // there will be room again
  full.complete(0, 0, false);
  CHECK(full.refused(ENOBUFS) && full.given_up());  // there will not
  for (const int error : {EOPNOTSUPP, EINVAL}) {
    ff::ZeroCopy state(pair.near.get());
    state.enable();
    CHECK(state.refused(error) && state.given_up());
  }
}

// Where the kernel may lock no pages (privileged processes may) it says ENOBUFS: sent the plain way.
void no_locked_memory() {
  const rlimit none{0, 0};
  CHECK(::setrlimit(RLIMIT_MEMLOCK, &none) == 0);
  Sockets pair = tcp();
  ff::Stream stream(std::move(pair.near));
  stream.zero_copy().enable();
  exchange(stream, pair.far.get(), pattern(3 << 20), 3);
  CHECK(quiet(stream));
  CHECK(stream.zero_copy().given_up());
  CHECK(stream.zero_copy().take_bytes() == 0);
}

// Only what lies in the slot of a checksummed version is ever sent this way.
void what_may_be_sent() {
  const auto data = pattern(1 << 20);
  const auto trials = [&](ff::FrameType type, uint16_t flags, bool further) {
    Sockets pair = tcp();
    ff::TcpTransport transport(std::move(pair.near), ff::TcpTransport::Slots::kZeroCopy);
    std::thread reader([&] {
      std::vector<uint8_t> got(1 << 16);
      while (::recv(pair.far.get(), got.data(), got.size(), 0) > 0) continue;
    });
    if (further) {
      transport.expect_version(flags != 0);
    } else {
      ff::FrameHeader begin = ff::make_frame(ff::FrameType::kBegin, 0, 1, 1);
      begin.flags = flags;
      begin.length = 16;
      ff::send_frame(transport, begin, data.data(), kPatience);
    }
    ff::FrameHeader frame = ff::make_frame(type, 0, 1, 1);
    frame.length = data.size();
    ff::send_frame(transport, frame, data.data(), kPatience);
    transport.shutdown();
    reader.join();
    return transport.zero_copy().trials();
  };
  for (const bool further : {false, true}) {
    CHECK(trials(ff::FrameType::kChunk, ff::kChecksummed, further) == 1);
    CHECK(trials(ff::FrameType::kBlob, ff::kChecksummed, further) == 1);
    CHECK(trials(ff::FrameType::kChunk, 0, further) == 0);
    CHECK(trials(ff::FrameType::kBlob, 0, further) == 0);
    CHECK(trials(ff::FrameType::kJournal, ff::kChecksummed, further) == 0);
  }
}

// The peer goes away within a send: an error, whatever the kernel still holds.
void broken() {
  Sockets pair = tcp();
  ff::Stream stream(std::move(pair.near));
  stream.zero_copy().enable();
  std::thread reader([&] {
    char some[1000];
    CHECK(::recv(pair.far.get(), some, sizeof some, 0) > 0);
    pair.far.reset();
  });
  const auto data = pattern(64 << 20);
  bool failed = false;
  try {
    send(stream, data);
  } catch (const ff::Error& error) {
    failed = error.code() == FF_EIO;
  }
  reader.join();
  CHECK(failed);
}

}  // namespace

int main() {
  completions();
  refusals();
  loopback();
  never_tried();
  what_may_be_sent();
  broken();
  no_locked_memory();  // last: it stays like that
  std::puts("ok");
  return 0;
}
