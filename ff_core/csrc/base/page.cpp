// The status page: 64-bit words shared by one worker and its agent, and a futex that wakes the commit gate.
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.h"
#include "base/fd.h"

namespace {

static_assert(sizeof(ff_status_page) == 96, "the page's layout is shared between processes");

// Between processes: the futex must not be private.
long futex(uint32_t* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, word, operation, value, timeout, nullptr, 0);
}

}  // namespace

extern "C" {

uint64_t ff_page_load(const uint64_t* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void ff_page_store(uint64_t* word, uint64_t value) {
  __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

void ff_page_notify(ff_status_page* page) {
  __atomic_fetch_add(&page->futex, 1, __ATOMIC_SEQ_CST);
  futex(&page->futex, FUTEX_WAKE, INT_MAX, nullptr);
}

int ff_page_wait_w(ff_status_page* page, uint64_t stamp, uint64_t epoch, int64_t timeout_ms) {
  return ff::guarded([&] {
    if (page == nullptr) ff::raise(FF_EINVAL, "status page is null");
    const ff::Deadline deadline = ff::Deadline::after_ms(timeout_ms);
    for (;;) {
      const uint32_t seen = __atomic_load_n(&page->futex, __ATOMIC_SEQ_CST);
      if (ff_page_load(&page->halt_epoch) > epoch) return ff::report(FF_EHALTED, "halted: a newer epoch was announced");
      if (ff_page_load(&page->w_stamp) >= stamp) return static_cast<int>(FF_OK);
      const int64_t left = deadline.left_ns();
      if (left <= 0) {
        ff::raise(FF_ETIMEOUT, "W did not reach (%llu, %lld) within %lld ms; it is (%llu, %lld)",
                  static_cast<unsigned long long>(stamp >> 40),
                  static_cast<long long>(stamp & ((uint64_t{1} << 40) - 1)) - 1, static_cast<long long>(timeout_ms),
                  static_cast<unsigned long long>(ff_page_load(&page->w_stamp) >> 40),
                  static_cast<long long>(ff_page_load(&page->w_stamp) & ((uint64_t{1} << 40) - 1)) - 1);
      }
      const timespec wait{left / 1000000000, left % 1000000000};
      futex(&page->futex, FUTEX_WAIT, seen, &wait);  // any return: look again
    }
  });
}
}
