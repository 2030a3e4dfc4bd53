// Memory files for arenas: mapped so that huge pages can be used, and made of huge pages where the kernel has them.
//
// A file of 4 KiB pages costs a page fault per page and process, and the kernel's copies in and out of sockets walk
// them one by one; huge pages save about a tenth of what a version costs (docs/benchmarks.md). memfd's own huge pages
// (MFD_HUGETLB) need an administrator's reservation, and the system-wide switch for shared memory is usually off;
// MADV_COLLAPSE (Linux 6.1) asks for them in one place and needs neither.
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/error.h"
#include "base/fd.h"

namespace ff {
namespace {

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

constexpr uint64_t kHuge = 2 << 20;
constexpr uint64_t kPiece = 32 * kHuge;  // per system call, each of which has a fixed cost
// Memory that is scattered is put together by moving other pages about: worth it only while it goes quickly.
constexpr int64_t kPatienceNs = 500 * 1000 * 1000;

// Maps at an address that is a multiple of a huge page.
void* map_aligned(int fd, uint64_t bytes) {
  const uint64_t room = bytes + kHuge;
  void* reserved = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) raise_errno(errno, "mapping of %llu bytes", static_cast<unsigned long long>(bytes));
  const auto start = reinterpret_cast<uintptr_t>(reserved);
  const uintptr_t aligned = (start + kHuge - 1) / kHuge * kHuge;
  void* base = ::mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  const int error = errno;
  if (base == MAP_FAILED) {
    ::munmap(reserved, room);
    raise_errno(error, "mapping of %llu bytes", static_cast<unsigned long long>(bytes));
  }
  constexpr uintptr_t kPage = 4096;
  const uintptr_t end = aligned + (bytes + kPage - 1) / kPage * kPage;
  if (aligned > start) ::munmap(reserved, aligned - start);
  if (start + room > end) ::munmap(reinterpret_cast<void*>(end), start + room - end);
  return base;
}

// Huge pages for the file's pages from the front, as far as they can be had; returns how many bytes.
uint64_t collapse(int fd, uint8_t* base, uint64_t bytes) {
  uint64_t done = 0;
  for (const uint64_t whole = bytes / kHuge * kHuge; done < whole;) {
    const uint64_t piece = std::min(kPiece, whole - done);
    const int64_t start = monotonic_ns();
    for (uint64_t at = done; at < done + piece; at += kHuge) {  // one that is empty is not collapsed
      if (::posix_fallocate(fd, static_cast<off_t>(at), 1) != 0) return done;
    }
    if (::madvise(base + done, piece, MADV_COLLAPSE) != 0) return done;
    done += piece;
    if (monotonic_ns() - start > kPatienceNs) return done;
  }
  return done;
}

}  // namespace
}  // namespace ff

extern "C" {

int ff_memory_huge(int fd, uint64_t bytes, uint64_t* huge) {
  return ff::guarded([&] {
    if (huge == nullptr) ff::raise(FF_EINVAL, "result pointer is null");
    *huge = 0;
    if (bytes < ff::kHuge) return FF_OK;
    void* base = ff::map_aligned(fd, bytes);
    *huge = ff::collapse(fd, static_cast<uint8_t*>(base), bytes);
    ::munmap(base, bytes);
    return FF_OK;
  });
}

int ff_memory_map(int fd, uint64_t bytes, void** base) {
  return ff::guarded([&] {
    if (base == nullptr || bytes == 0) ff::raise(FF_EINVAL, "mapping of no bytes, or result pointer is null");
    *base = ff::map_aligned(fd, bytes);
    return FF_OK;
  });
}

int ff_memory_unmap(void* base, uint64_t bytes) {
  return ff::guarded([&] {
    if (::munmap(base, bytes) != 0) ff::raise_errno(errno, "unmapping");
    return FF_OK;
  });
}
}
