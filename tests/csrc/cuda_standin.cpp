// Driver, contexts, streams and events of the stand-in, and what only tests call.
#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "cuda_standin.h"

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
int cuCtxSynchronize() {
  NEED_CONTEXT("cuCtxSynchronize");
  std::map<Stream*, std::unique_ptr<Mark>> marks;
  std::deque<std::shared_ptr<Mark>> waiting;
  {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    for (auto& [stream, owner] : machine().streams) {
      waiting.push_back(std::make_shared<Mark>());
      stream->record(waiting.back());
    }
  }
  for (auto& mark : waiting) mark->await();
  return kSuccess;
}
int cuCtxGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return kSuccess;
}
int cuStreamCreateWithPriority(void** stream, unsigned, int) {
  NEED_CONTEXT("cuStreamCreateWithPriority");
  const std::lock_guard<std::mutex> lock(machine().mutex);
  *stream = add_stream();
  return kSuccess;
}
int cuStreamDestroy_v2(void* stream) {
  if (capturing && capture_mode != kRelaxed) ++refused;
  std::unique_ptr<Stream> owner;
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const auto found = machine().streams.find(static_cast<Stream*>(stream));
  if (found == machine().streams.end()) return kInvalidValue;
  owner = std::move(found->second);
  machine().streams.erase(found);
  return kSuccess;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  NEED_CONTEXT("cuStreamWaitEvent");
  const auto mark = static_cast<Event*>(event)->get();
  if (mark != nullptr) of(stream).push([mark] { mark->await(); });
  return kSuccess;
}
int cuStreamSynchronize(void* stream) {
  NEED_CONTEXT("cuStreamSynchronize");
  return synchronize(of(stream));
}
int cuEventCreate(void** event, unsigned) {
  NEED_CONTEXT("cuEventCreate");
  *event = new Event;
  return kSuccess;
}
int cuEventDestroy_v2(void* event) {
  if (capturing && capture_mode != kRelaxed) ++refused;
  delete static_cast<Event*>(event);
  return kSuccess;
}
int cuEventRecord(void* event, void* stream) {
  NEED_CONTEXT("cuEventRecord");
  const auto mark = std::make_shared<Mark>();
  {
    auto* const e = static_cast<Event*>(event);
    const std::lock_guard<std::mutex> lock(e->mutex);
    e->mark = mark;
  }
  of(stream).record(mark);
  return kSuccess;
}
int cuEventQuery(void* event) {
  NEED_CONTEXT("cuEventQuery");
  const auto mark = static_cast<Event*>(event)->get();
  return mark == nullptr || mark->passed() ? kSuccess : kNotReady;
}
int cuEventSynchronize(void* event) {
  NEED_CONTEXT("cuEventSynchronize");
  const auto mark = static_cast<Event*>(event)->get();
  if (mark != nullptr) mark->await();
  return kSuccess;
}
// A stream that stands still from here on until it is let go.
void* ff_standin_hold(void* stream) {
  auto* const mark = new std::shared_ptr<Mark>(std::make_shared<Mark>());
  of(stream).push([held = *mark] { held->await(); });
  return mark;
}
void ff_standin_let_go(void* held) {
  const std::unique_ptr<std::shared_ptr<Mark>> mark(static_cast<std::shared_ptr<Mark>*>(held));
  (*mark)->finish();
}
// Somebody captures a graph from now on, or no more. Returns how many calls were refused because of that so far.
int ff_standin_capture(int on) {
  capturing = on != 0;
  return refused;
}
uint64_t ff_standin_waiting_downloads() { return waiting_downloads; }
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
