// A stand-in for the CUDA driver's library, on the host: what the engine and its tests use of libcuda.so.1, and the
// rules that matter for ordering. Each stream is a thread that works through its queue, as late as it likes; "device
// memory" is host memory, so that a sanitizer sees every access that nothing orders. Copies to host memory that is not
// pinned are refused: the real driver would make them wait. Built by the tests, found through LD_LIBRARY_PATH.
//
// $FF_STANDIN_DELAY_US: an operation is preceded by up to that long a pause (default 200).
// $FF_STANDIN_FAIL=NAME:N: the Nth call of NAME fails with CUDA_ERROR_UNKNOWN.
#include "cuda_standin.h"

#include <cstdlib>
#include <utility>

namespace standin {

Machine& machine() {
  static auto* const one = new Machine;  // never destroyed: streams may be used until the process is gone
  return *one;
}

thread_local int current = 0;
thread_local int capture_mode = 0;  // CU_STREAM_CAPTURE_MODE_GLOBAL
std::atomic<bool> capturing{false};
std::atomic<int> refused{0};

int delay_us() {
  const char* text = std::getenv("FF_STANDIN_DELAY_US");
  return text != nullptr ? std::atoi(text) : 200;
}

bool fails(const char* name) {
  const char* text = std::getenv("FF_STANDIN_FAIL");
  if (text == nullptr) return false;
  const std::string wanted(text);
  const size_t colon = wanted.find(':');
  if (wanted.substr(0, colon) != name) return false;
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  return ++m.calls[name] == std::atoi(wanted.c_str() + colon + 1);
}

}  // namespace standin

using namespace standin;

#pragma GCC visibility push(default)
extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  *count = 2;
  return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}
int cuGetErrorName(int code, const char** text) {
  *text = code == kUnknown ? "CUDA_ERROR_UNKNOWN" : code == kInvalidContext ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR";
  return kSuccess;
}
int cuGetErrorString(int, const char** text) {
  *text = "the stand-in refuses";
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  if (fails("cuDevicePrimaryCtxRetain")) return kUnknown;
  const std::lock_guard<std::mutex> lock(machine().mutex);
  ++machine().contexts;
  *context = &machine();
  return kSuccess;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  --machine().contexts;
  return kSuccess;
}
int cuCtxPushCurrent_v2(void*) {
  ++current;
  return kSuccess;
}
int cuCtxPopCurrent_v2(void**) {
  --current;
  return kSuccess;
}
int cuThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(*mode, capture_mode);
  return kSuccess;
}
// Somebody captures a graph from now on, or no more. Returns how many calls were refused because of that so far.
int ff_standin_capture(int on) {
  capturing = on != 0;
  return refused;
}
// How much is left: contexts, streams, device allocations, pinned ranges. For leak checks.
void ff_standin_left(int* out) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  out[0] = machine().contexts;
  out[1] = static_cast<int>(machine().streams.size()) - (machine().fallback != nullptr);
  out[2] = static_cast<int>(machine().device.size());
  out[3] = static_cast<int>(machine().pinned.size());
}
}
#pragma GCC visibility pop
