// A CUDA device through the driver API, in the device's primary context: the one that torch uses.
#pragma once
#include <memory>
#include <string>

#include "device/device.h"

namespace ff {

// Error(FF_EDEVICE): no driver, no such device, no memory for its context; the message says which.
std::unique_ptr<Device> open_cuda_device(int index);

// JSON: what this build and this machine have; does not initialise CUDA (a process that forks later must not have).
std::string cuda_build_info();

}  // namespace ff
