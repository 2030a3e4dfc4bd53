// A worker's death as its agent sees it: a robust mutex in the status page, held by the worker's main thread.
//
// The kernel hands a dying thread's robust mutexes on before it tears the process's memory down, which takes tens to
// hundreds of milliseconds; waitpid returns only after that. What is known early is that none of the process's own code
// runs any more; its threads inside system calls may still be ending.
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/error.h"
#include "base/fd.h"
#include "base/thread.h"

namespace {

constexpr size_t kLifeOffset = 2048;  // in the page, far behind the words
constexpr int64_t kSliceNs = 500000000;  // how long closing a watch of a living process may take

pthread_mutex_t* life_of(ff_status_page* page) {
  if (page == nullptr) ff::raise(FF_EINVAL, "status page is null");
  return reinterpret_cast<pthread_mutex_t*>(reinterpret_cast<char*>(page) + kLifeOffset);
}

void expect(int code, const char* what) {
  if (code != 0) ff::raise(FF_EINTERNAL, "%s: error %d", what, code);
}

class Attributes {
 public:
  Attributes() {
    expect(pthread_mutexattr_init(&value), "pthread_mutexattr_init");
  }
  ~Attributes() { pthread_mutexattr_destroy(&value); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  pthread_mutexattr_t value;
};

}  // namespace

struct ff_life_watch {
  ff_life_watch(pthread_mutex_t* life, int notify_fd) : life_(life), bell_(notify_fd) {
    thread_ = ff::start_thread("ff-life", [this] { run(); });
  }
  ~ff_life_watch() {
    stop_.store(true);
    thread_.join();
  }

 private:
  void run() {
    while (!stop_.load()) {
      timespec until;
      clock_gettime(CLOCK_MONOTONIC, &until);
      until.tv_nsec += kSliceNs;
      until.tv_sec += until.tv_nsec / 1000000000;
      until.tv_nsec %= 1000000000;
      const int code = pthread_mutex_clocklock(life_, CLOCK_MONOTONIC, &until);
      if (code == ETIMEDOUT) continue;
      if (code == EOWNERDEAD) {
        pthread_mutex_consistent(life_);
        bell_.ring();
      }
      if (code == 0 || code == EOWNERDEAD) pthread_mutex_unlock(life_);
      return;
    }
  }

  pthread_mutex_t* life_;
  ff::Bell bell_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

extern "C" {

int ff_life_init(ff_status_page* page) {
  return ff::guarded([&] {
    Attributes attributes;
    expect(pthread_mutexattr_setpshared(&attributes.value, PTHREAD_PROCESS_SHARED), "pthread_mutexattr_setpshared");
    expect(pthread_mutexattr_setrobust(&attributes.value, PTHREAD_MUTEX_ROBUST), "pthread_mutexattr_setrobust");
    expect(pthread_mutex_init(life_of(page), &attributes.value), "pthread_mutex_init");
    return static_cast<int>(FF_OK);
  });
}

int ff_life_hold(ff_status_page* page) {
  return ff::guarded([&] {
    expect(pthread_mutex_trylock(life_of(page)), "another thread is this page's life already");
    return static_cast<int>(FF_OK);
  });
}

int ff_life_release(ff_status_page* page) {
  return ff::guarded([&] {
    expect(pthread_mutex_unlock(life_of(page)), "this thread is not this page's life");
    return static_cast<int>(FF_OK);
  });
}

int ff_life_watch_open(ff_status_page* page, int notify_fd, ff_life_watch** out) {
  return ff::guarded([&] {
    if (out == nullptr) ff::raise(FF_EINVAL, "out is null");
    *out = std::make_unique<ff_life_watch>(life_of(page), notify_fd).release();
    return static_cast<int>(FF_OK);
  });
}

int ff_life_watch_close(ff_life_watch* watch) {
  return ff::guarded([&] {
    std::unique_ptr<ff_life_watch>{watch}.reset();
    return static_cast<int>(FF_OK);
  });
}
}
