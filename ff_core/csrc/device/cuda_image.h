// The gather kernel's fat binary as it was built into this library; 0 bytes: nvcc was not there at build time.
#pragma once
#include <cstddef>

namespace ff {

extern const unsigned char kGatherImage[];
extern const size_t kGatherImageBytes;

}  // namespace ff
