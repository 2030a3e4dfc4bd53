// Memory, copies and kernels of the stand-in for the CUDA driver.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda_standin.h"
#include "device/gather.h"

using namespace standin;

namespace {

std::atomic<uint64_t> waiting_downloads{0};  // bytes of those enqueued and not done

bool within(const std::map<char*, size_t>& ranges, const void* start, size_t bytes) {
  auto* const from = static_cast<char*>(const_cast<void*>(start));
  auto range = ranges.upper_bound(from);
  if (range == ranges.begin()) return false;
  --range;
  return from + bytes <= range->first + range->second;
}

bool is_pinned(const void* start, size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return within(machine().pinned, start, bytes);
}

bool is_device(const void* start, size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return within(machine().device, start, bytes);
}

void run_gather(const ff::GatherTile* tiles, uint32_t count, char* staging) {
  for (uint32_t i = 0; i < count; ++i) {
    if (tiles[i].source == 0) {
      std::memset(staging + tiles[i].target, 0, tiles[i].bytes);
    } else {
      std::memcpy(staging + tiles[i].target, reinterpret_cast<const void*>(tiles[i].source), tiles[i].bytes);
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  NEED_CONTEXT("cuMemAlloc_v2");
  auto* const memory = static_cast<char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().device[memory] = bytes;
  *address = reinterpret_cast<unsigned long long>(memory);
  return kSuccess;
}
int cuMemFree_v2(unsigned long long address) {
  NEED_CONTEXT("cuMemFree_v2");
  auto* const memory = reinterpret_cast<char*>(address);
  const std::lock_guard<std::mutex> lock(machine().mutex);
  if (address == 0) return kSuccess;
  if (machine().device.erase(memory) == 0) return kInvalidValue;
  std::free(memory);
  return kSuccess;
}
int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  NEED_CONTEXT("cuMemHostAlloc");
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().pinned[static_cast<char*>(*memory)] = bytes;
  return kSuccess;
}
int cuMemFreeHost(void* memory) {
  NEED_CONTEXT("cuMemFreeHost");
  const std::lock_guard<std::mutex> lock(machine().mutex);
  if (machine().pinned.erase(static_cast<char*>(memory)) == 0) return kInvalidValue;
  std::free(memory);
  return kSuccess;
}
int cuMemHostRegister_v2(void* memory, size_t bytes, unsigned) {
  NEED_CONTEXT("cuMemHostRegister_v2");
  std::this_thread::sleep_for(std::chrono::microseconds(delay_us() * 10));  // pinning is slow
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return machine().pinned.emplace(static_cast<char*>(memory), bytes).second ? kSuccess : kAlreadyRegistered;
}
int cuMemHostUnregister(void* memory) {
  NEED_CONTEXT("cuMemHostUnregister");
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return machine().pinned.erase(static_cast<char*>(memory)) == 1 ? kSuccess : kNotRegistered;
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void* stream) {
  NEED_CONTEXT("cuMemcpyDtoHAsync_v2");
  const auto* const source = reinterpret_cast<const void*>(from);
  if (!is_pinned(to, bytes) || !is_device(source, bytes)) return kInvalidValue;
  waiting_downloads += bytes;
  of(stream).push([=] {
    std::memcpy(to, source, bytes);
    waiting_downloads -= bytes;
  });
  return kSuccess;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* stream) {
  NEED_CONTEXT("cuMemcpyHtoDAsync_v2");
  auto* const target = reinterpret_cast<void*>(to);
  if (!is_device(target, bytes)) return kInvalidValue;
  of(stream).push([=] { std::memcpy(target, from, bytes); });
  return is_pinned(from, bytes) ? kSuccess : synchronize(of(stream));
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void* stream) {
  NEED_CONTEXT("cuMemsetD8Async");
  auto* const target = reinterpret_cast<void*>(to);
  if (!is_device(target, bytes)) return kInvalidValue;
  of(stream).push([=] { std::memset(target, value, bytes); });
  return kSuccess;
}
int cuModuleLoadData(void** module, const void* image) {
  NEED_CONTEXT("cuModuleLoadData");
  if (image == nullptr) return kInvalidValue;
  *module = new int(++machine().modules);
  return kSuccess;
}
int cuModuleUnload(void* module) {
  delete static_cast<int*>(module);
  return kSuccess;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  NEED_CONTEXT("cuModuleGetFunction");
  if (std::strcmp(name, ff::kGatherKernel) != 0) return kInvalidValue;
  *function = module;
  return kSuccess;
}
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream,
                   void** parameters, void**) {
  NEED_CONTEXT("cuLaunchKernel");
  const auto* const tiles = *static_cast<const ff::GatherTile**>(parameters[0]);
  const uint32_t count = *static_cast<uint32_t*>(parameters[1]);
  auto* const staging = *static_cast<char**>(parameters[2]);
  of(stream).push([=] { run_gather(tiles, count, staging); });
  return kSuccess;
}
uint64_t ff_standin_waiting_downloads() { return waiting_downloads; }
}
#pragma GCC visibility pop
