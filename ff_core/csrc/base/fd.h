// Small things that waiting needs: an owned descriptor, an eventfd, a deadline.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "base/error.h"

namespace ff {

class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = other.fd_;
      other.fd_ = -1;
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  int get() const { return fd_; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

// Takes over the descriptors that a caller gave away.
inline std::vector<UniqueFd> own(const int* fds, size_t count) {
  std::vector<UniqueFd> owned;
  for (size_t i = 0; fds != nullptr && i < count; ++i) owned.emplace_back(fds[i]);
  return owned;
}

// A descriptor that is readable when any of `fds` is.
inline UniqueFd any_readable(std::initializer_list<int> fds) {
  UniqueFd any(::epoll_create1(EPOLL_CLOEXEC));
  if (any.get() < 0) raise_errno(errno, "epoll_create1");
  for (const int fd : fds) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(any.get(), EPOLL_CTL_ADD, fd, &event) != 0) raise_errno(errno, "epoll_ctl");
  }
  return any;
}

// A descriptor to ring: an eventfd of ours, or a duplicate of a caller's, so that his closing it harms nothing.
class Bell {
 public:
  Bell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_.get() < 0) raise_errno(errno, "eventfd");
  }
  explicit Bell(int callers) : fd_(callers < 0 ? -1 : ::fcntl(callers, F_DUPFD_CLOEXEC, 0)) {
    if (callers >= 0 && fd_.get() < 0) raise_errno(errno, "notify_fd %d", callers);
  }
  void ring() const {
    const uint64_t one = 1;
    if (fd_.get() >= 0 && ::write(fd_.get(), &one, sizeof one) < 0) return;  // full: it is ringing already
  }
  void silence() const {
    uint64_t count;
    if (::read(fd_.get(), &count, sizeof count) < 0) return;  // was not ringing
  }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

class Deadline {
 public:
  static Deadline never() { return Deadline(Clock::time_point::max()); }
  static Deadline after_ms(int64_t ms) {  // FF_EINVAL: negative
    if (ms < 0) raise(FF_EINVAL, "timeout is %lld ms, it must not be negative", static_cast<long long>(ms));
    constexpr int64_t kYear = int64_t{365} * 86400 * 1000;
    return Deadline(Clock::now() + std::chrono::milliseconds(ms < kYear ? ms : kYear));
  }
  bool passed() const { return at_ != Clock::time_point::max() && Clock::now() >= at_; }
  int64_t left_ns() const {  // INT64_MAX: never
    if (at_ == Clock::time_point::max()) return INT64_MAX;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(at_ - Clock::now()).count();
  }
  // For poll(2): -1 never, otherwise rounded up and at most `most`.
  int poll_ms(int most) const {
    const int64_t left = left_ns();
    if (left <= 0) return 0;
    if (left == INT64_MAX) return most;
    const int64_t ms = (left - 1) / 1000000 + 1;
    return most >= 0 && ms > most ? most : static_cast<int>(ms < 1000000000 ? ms : 1000000000);
  }

 private:
  using Clock = std::chrono::steady_clock;
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

int64_t inline monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace ff
