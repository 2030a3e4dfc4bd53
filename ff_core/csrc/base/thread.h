// Engine threads: named, joined by their owner, deaf to signals (those belong to the process's own threads).
#pragma once
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <cstdint>
#include <thread>
#include <utility>

namespace ff {

// While it lives, the calling thread takes no signals, and neither will threads that it starts.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Starts `body` as a thread called `name` (15 characters at most). The caller joins it.
template <class Body>
std::thread start_thread(const char* name, Body&& body) {
  const SignalsBlocked blocked;
  std::thread thread(std::forward<Body>(body));
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

// CPU time of the calling thread since the last call on the same meter.
class CpuMeter {
 public:
  uint64_t lap() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    const uint64_t total = static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
    const uint64_t spent = total - last_;
    last_ = total;
    return spent;
  }

 private:
  uint64_t last_ = 0;
};

}  // namespace ff
