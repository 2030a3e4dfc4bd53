#include "device/cuda_image.h"

namespace ff {

// build.py writes the file and puts its directory on the include path when nvcc is there.
#if __has_include("cuda_gather_image.inc")
alignas(64) const unsigned char kGatherImage[] = {
#include "cuda_gather_image.inc"
};
const size_t kGatherImageBytes = sizeof kGatherImage;
#else
const unsigned char kGatherImage[] = {0};
const size_t kGatherImageBytes = 0;
#endif

}  // namespace ff
