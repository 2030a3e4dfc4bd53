// Mappings of memory files.
#pragma once
#include <cstdint>

namespace ff {

constexpr uint64_t kHuge = 2 << 20;  // bytes of a huge page

// A shared mapping of `bytes` of the file at an address that is a multiple of a huge page. munmap(2) ends it.
void* map_aligned(int fd, uint64_t bytes);

}  // namespace ff
