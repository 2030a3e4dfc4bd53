#include "transport/ucx_wait.h"

#include <poll.h>

#include "base/error.h"
#include "base/fd.h"

namespace ff {
namespace {

// What of `events` the socket has, after `ms` at the latest (-1: without limit), or sooner if the port has work.
short watch(const UcxPort& port, int socket, short events, int ms) {
  pollfd waits[2] = {{socket, events, 0}, {port.fd(), POLLIN, 0}};
  // A busy port's descriptor is not asked: it tells something only while the worker is armed.
  if (::poll(waits, ms == 0 ? 1 : 2, ms) < 0 && errno != EINTR) raise_errno(errno, "poll");
  return waits[0].revents;
}

}  // namespace

void UcxWait::turn(int ms) {
  // The socket comes first: where the peer is gone UCX shall not go on with it.
  if (turns_++ % look_every_ == 0 && watch(port_, socket_, POLLRDHUP, 0) != 0) {
    raise(FF_EIO, "connection closed by the peer");
  }
  if (port_.progress()) {
    vain_ = 0;
  } else if (port_.arm()) {
    sleep(ms);
  }
}

void UcxWait::sleep(int ms) {
  // UCX's TCP has its descriptor ready all the time while a message waits for the peer's half of a connection: the peer
  // may need the processor.
  constexpr timespec kPause{0, 100000};
  pollfd waits[2] = {{socket_, POLLRDHUP, 0}, {port_.fd(), POLLIN, 0}};
  const bool pause = vain_ >= kVain;
  if ((pause ? ::ppoll(waits, 1, &kPause, nullptr) : ::poll(waits, 2, ms)) < 0 && errno != EINTR) {
    raise_errno(errno, "poll");
  }
  if (waits[0].revents != 0) raise(FF_EIO, "connection closed by the peer");
  vain_ = pause ? kVain - 1 : waits[1].revents != 0 ? vain_ + 1 : 0;
}

void UcxWait::until_readable() {
  for (;;) {
    if (turns_++ % look_every_ == 0 && watch(port_, socket_, POLLIN, 0) != 0) return;
    if (port_.progress() || !port_.arm()) continue;
    if (watch(port_, socket_, POLLIN, -1) != 0) return;
  }
}

}  // namespace ff
