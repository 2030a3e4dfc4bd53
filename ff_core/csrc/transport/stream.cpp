#include "transport/stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>

#include <mutex>

namespace ff {
namespace {

constexpr int kSliceMs = 100;  // how often a blocked send looks at its deadline

[[noreturn]] void closed() {
  raise(FF_EIO, "connection closed by the peer");
}

void set_timeout(int fd, int option, int ms) {
  const timeval slice{ms / 1000, (ms % 1000) * 1000};
  if (::setsockopt(fd, SOL_SOCKET, option, &slice, sizeof slice) != 0)
    raise_errno(errno, "setsockopt on descriptor %d", fd);
}

}  // namespace

Stream::Stream(UniqueFd owned) : fd_(std::move(owned)), zero_copy_(fd_.get()) {
  const int fd = fd_.get();
  int type = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) raise_errno(errno, "descriptor %d is not a socket", fd);
  if (type != SOCK_STREAM)
    raise(FF_EINVAL, "descriptor %d is a socket of type %d, allowed are stream sockets (%d)", fd, type, SOCK_STREAM);
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) != 0) raise_errno(errno, "fcntl on descriptor %d", fd);
  if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) raise_errno(errno, "fcntl on descriptor %d", fd);
  set_timeout(fd, SO_SNDTIMEO, kSliceMs);
  set_timeout(fd, SO_RCVTIMEO, 0);
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on AF_UNIX, which needs it not
  forked::remember(fd);
}

Stream::~Stream() {
  forked::forget(fd_.get());
}

void Stream::shutdown() noexcept {
  ::shutdown(fd_.get(), SHUT_RDWR);
}

void Stream::send(iovec* parts, int count, const Patience& patience, Memory memory, bool more) {
  const int flags = MSG_NOSIGNAL | (more ? MSG_MORE : 0);
  Deadline stall = Deadline::after_ms(patience.stall_ms);
  while (count > 0) {
    if (parts->iov_len == 0) {
      ++parts;
      --count;
      continue;
    }
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<size_t>(count);
    const bool whole = memory == Memory::kStays && zero_copy_.wants(parts->iov_len);
    const ssize_t sent = ::sendmsg(fd_.get(), &message, flags | (whole ? MSG_ZEROCOPY : 0));
    if (sent < 0) {
      const int error = errno;
      if (error == EPIPE || error == ECONNRESET) closed();
      if (whole && zero_copy_.refused(error)) {
        memory = Memory::kMayChange;
      } else if (error != EINTR && error != EAGAIN && error != EWOULDBLOCK) {
        raise_errno(error, "send");
      }
    } else {
      if (whole) zero_copy_.sent(static_cast<uint64_t>(sent));
      stall = Deadline::after_ms(patience.stall_ms);
      size_t left = static_cast<size_t>(sent);
      while (count > 0 && left >= parts->iov_len) {
        left -= parts->iov_len;
        ++parts;
        --count;
      }
      if (count > 0) {
        parts->iov_base = static_cast<char*>(parts->iov_base) + left;
        parts->iov_len -= left;
      }
    }
    if (count > 0 && patience.end.passed()) raise(FF_ETIMEOUT, "send: deadline passed");
    if (count > 0 && stall.passed()) {
      raise(FF_ETIMEOUT, "send: the peer took no byte for %lld ms", static_cast<long long>(patience.stall_ms));
    }
  }
}

bool Stream::receive(void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  for (size_t got = 0; got < bytes;) {
    const ssize_t part = ::recv(fd_.get(), at + got, bytes - got, MSG_WAITALL);
    if (part > 0) {
      got += static_cast<size_t>(part);
    } else if (part == 0) {
      if (got == 0) return false;
      closed();
    } else if (errno == ECONNRESET) {
      closed();
    } else if (errno != EINTR) {
      raise_errno(errno, "recv");
    }
  }
  return true;
}

size_t Stream::receive_some(void* data, size_t bytes) {
  const ssize_t got = ::recv(fd_.get(), data, bytes, MSG_DONTWAIT);
  if (got > 0) return static_cast<size_t>(got);
  if (got == 0 || errno == ECONNRESET) closed();
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
  raise_errno(errno, "recv");
}

namespace forked {
namespace {

// Atomics, not a mutex: the fork may happen while another thread is in here.
constexpr int kEntries = 4096;
std::atomic<int> descriptors[kEntries];  // descriptor + 1; 0: free

void close_in_child() {
  for (auto& entry : descriptors) {
    const int fd = entry.exchange(0) - 1;
    if (fd >= 0) ::close(fd);
  }
}

}  // namespace

void remember(int fd) {
  static std::once_flag once;
  std::call_once(once, [] { ::pthread_atfork(nullptr, nullptr, close_in_child); });
  for (auto& entry : descriptors) {
    int free = 0;
    if (entry.compare_exchange_strong(free, fd + 1)) return;
  }
  raise(FF_ENOSPACE, "more than %d engine connections in one process", kEntries);
}

void forget(int fd) {
  for (auto& entry : descriptors) {
    int mine = fd + 1;
    if (entry.compare_exchange_strong(mine, 0)) return;
  }
}

}  // namespace forked
}  // namespace ff
