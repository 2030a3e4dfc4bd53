#include "transport/zero_copy.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>

#include <linux/errqueue.h>

#include <cstring>
#include <utility>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef SO_EE_ORIGIN_ZEROCOPY
#define SO_EE_ORIGIN_ZEROCOPY 5
#endif
#ifndef SO_EE_CODE_ZEROCOPY_COPIED
#define SO_EE_CODE_ZEROCOPY_COPIED 1
#endif

namespace ff {

ZeroCopy::ZeroCopy(int fd) : fd_(fd) {}

void ZeroCopy::enable() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int on = 1;
  if (::setsockopt(fd_, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0) state_ = State::kUntried;
}

bool ZeroCopy::wants(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kTrying || state_ == State::kOn) collect_locked();
  return bytes >= kLeast && (state_ == State::kUntried || state_ == State::kOn);
}

void ZeroCopy::sent(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  at(next_++).bytes = bytes;
  ++trials_;
  if (state_ == State::kUntried) state_ = State::kTrying;
  settle();
}

bool ZeroCopy::refused(int error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  // ENOBUFS: no more room for completions, or for locked pages. If none is outstanding there never will be.
  if (error == ENOBUFS) {
    collect_locked();
    if (first_ == next_) state_ = State::kGivenUp;
    return true;
  }
  if (error != EOPNOTSUPP && error != EINVAL) return false;
  state_ = State::kGivenUp;
  return true;
}

void ZeroCopy::collect() {
  const std::lock_guard<std::mutex> lock(mutex_);
  collect_locked();
}

void ZeroCopy::collect_locked() {
  if (state_ == State::kOff || (state_ == State::kGivenUp && first_ == next_)) return;
  for (;;) {
    alignas(cmsghdr) char control[256];
    msghdr message{};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(fd_, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;  // nothing there, or nothing to be told
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
      const bool v4 = at->cmsg_level == SOL_IP && at->cmsg_type == IP_RECVERR;
      const bool v6 = at->cmsg_level == SOL_IPV6 && at->cmsg_type == IPV6_RECVERR;
      if (!v4 && !v6) continue;
      sock_extended_err what;
      std::memcpy(&what, CMSG_DATA(at), sizeof what);
      if (what.ee_origin != SO_EE_ORIGIN_ZEROCOPY || what.ee_errno != 0) continue;
      complete_locked(what.ee_info, what.ee_data, (what.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0);
    }
  }
}

ZeroCopy::Send& ZeroCopy::at(uint32_t number) {
  const uint32_t place = number - first_;  // the kernel's numbers wrap around
  while (sends_.size() <= place) sends_.emplace_back();
  return sends_[place];
}

void ZeroCopy::complete(uint32_t first, uint32_t last, bool copied) {
  const std::lock_guard<std::mutex> lock(mutex_);
  complete_locked(first, last, copied);
}

void ZeroCopy::complete_locked(uint32_t first, uint32_t last, bool copied) {
  constexpr uint32_t kMost = 1 << 16;  // far more than a socket has room for
  for (uint32_t number = first; number - first_ < kMost; ++number) {
    Send& send = at(number);
    send.complete = true;
    send.copied = copied;
    if (number == last) break;
  }
  settle();
}

void ZeroCopy::settle() {
  while (first_ != next_ && sends_.front().complete) {
    const Send send = sends_.front();
    sends_.pop_front();
    ++first_;
    if (!send.copied) bytes_ += send.bytes;
    if (send.copied) {
      state_ = State::kGivenUp;
    } else if (state_ == State::kTrying) {
      state_ = State::kOn;
    }
  }
}

uint64_t ZeroCopy::take_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(bytes_, 0);
}

bool ZeroCopy::given_up() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kGivenUp;
}

uint64_t ZeroCopy::trials() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return trials_;
}

}  // namespace ff
