// Memory files for arenas: mapped so that huge pages can be used (base/huge.cpp makes them).
#include <errno.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/memory.h"

namespace ff {

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

}  // namespace ff

extern "C" {

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
