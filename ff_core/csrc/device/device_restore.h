// Restoring to a device: slot -> small pinned buffers -> device, by several threads. The slot itself need not be pinned
// (a newcomer's is not yet), and pinning little is quick.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/crew.h"
#include "device/device.h"
#include "ff_engine.h"

namespace ff {

// Copies payload bytes to `segments`, all on `device`. Waits first until the device is idle (work that others have put
// on their streams may still write these tensors), and last until the bytes are there.
void upload_segments(Device& device, const uint8_t* payload, std::vector<ff_segment> segments, Crew& crew);

}  // namespace ff
