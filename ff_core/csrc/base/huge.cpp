// Memory files of huge pages where the kernel has them.
//
// A file of 4 KiB pages costs a page fault per page and process, and the kernel's copies in and out of sockets walk
// them one by one; huge pages save about a tenth of what a version costs (docs/benchmarks.md). memfd's own huge pages
// (MFD_HUGETLB) need an administrator's reservation, and the system-wide switch for shared memory is usually off;
// MADV_COLLAPSE (Linux 6.1) asks for them in one place and needs neither.
//
// But it waits first until every processor has run a piece of work of the kernel's (lru_add_drain_all). One that is
// busy or set aside may not do so for minutes, and no signal ends that wait. So a process of its own asks, and is left
// behind if it takes too long.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "base/fd.h"
#include "base/memory.h"

namespace ff {
namespace {

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

constexpr uint64_t kPiece = 32 * kHuge;  // per system call, each of which has a fixed cost
// Memory that is scattered is put together by moving other pages about: worth it only while it goes quickly.
constexpr int kPatienceMs = 500;

// Nothing else of the process is kept alive by one that may stay: descriptors of other processes' connections least.
void close_all_but(int one, int other) {
  const auto low = static_cast<unsigned>(std::min(one, other)), high = static_cast<unsigned>(std::max(one, other));
  if (low > 0) ::syscall(SYS_close_range, 0u, low - 1, 0u);
  if (high > low + 1) ::syscall(SYS_close_range, low + 1, high - 1, 0u);
  ::syscall(SYS_close_range, high + 1, ~0u, 0u);
}

// In the child: system calls only. Says so after each piece that is there; ends where no more can be had.
[[noreturn]] void collapse(int fd, uint8_t* base, uint64_t bytes, int say, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  close_all_but(fd, say);
  const uint64_t whole = bytes / kHuge * kHuge;
  for (uint64_t done = 0; done < whole && ::getppid() == parent;) {
    const uint64_t piece = std::min(kPiece, whole - done);
    for (uint64_t at = done; at < done + piece; at += kHuge) {  // one that is empty is not collapsed
      if (::posix_fallocate(fd, static_cast<off_t>(at), 1) != 0) ::_exit(0);
    }
    if (::madvise(base + done, piece, MADV_COLLAPSE) != 0) ::_exit(0);
    done += piece;
    if (::write(say, &piece, sizeof piece) != sizeof piece) ::_exit(0);
  }
  ::_exit(0);
}

// A child with a copy of this process's memory, whose end tells nobody but who waits for it. All signals are blocked
// there: their handlers are this process's. (fork(2) of the C library would run what others hang upon it.)
pid_t bare_fork() {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr));
  const int error = errno;
  if (child != 0) ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return child;
}

// Bytes of the next piece; 0: there is none, it takes too long, or the child has ended.
uint64_t next_piece(int heard) {
  pollfd wanted{heard, POLLIN, 0};
  const int64_t deadline = monotonic_ns() + kPatienceMs * 1'000'000LL;
  for (;;) {
    const int64_t left = (deadline - monotonic_ns()) / 1'000'000;
    const int ready = ::poll(&wanted, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready < 0 && errno == EINTR) continue;
    uint64_t piece = 0;
    return ready > 0 && ::read(heard, &piece, sizeof piece) == sizeof piece ? piece : 0;
  }
}

}  // namespace
}  // namespace ff

extern "C" int ff_memory_huge(int fd, uint64_t bytes, uint64_t* huge) {
  return ff::guarded([&] {
    static std::atomic<bool> too_slow{false};  // this process has left one behind: no more of them
    if (huge == nullptr) ff::raise(FF_EINVAL, "result pointer is null");
    *huge = 0;
    if (bytes < ff::kHuge || too_slow) return FF_OK;
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) ff::raise_errno(errno, "pipe2");
    const ff::UniqueFd heard(ends[0]);
    ff::UniqueFd say(ends[1]);
    auto* base = static_cast<uint8_t*>(ff::map_aligned(fd, bytes));
    const pid_t parent = ::getpid(), child = ff::bare_fork();
    if (child == 0) ff::collapse(fd, base, bytes, say.get(), parent);
    ::munmap(base, bytes);
    if (child < 0) return FF_OK;
    say.reset();
    while (const uint64_t piece = ff::next_piece(heard.get())) *huge += piece;
    ::kill(child, SIGKILL);
    // One that has ended is gone at once; for one that waits in the kernel nobody waits.
    const int64_t patience = ff::monotonic_ns() + ff::kPatienceMs * 1'000'000LL;
    while (::waitpid(child, nullptr, WNOHANG | __WALL) == 0) {
      if (ff::monotonic_ns() > patience) {
        too_slow = true;
        break;
      }
      ::usleep(200);
    }
    return FF_OK;
  });
}
