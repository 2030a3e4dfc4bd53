// A stand-in for the CUDA driver's library, on the host: what the engine and its tests use of libcuda.so.1, and the
// rules that matter for ordering. Each stream is a thread that works through its queue, as late as it likes; "device
// memory" is host memory, so that a sanitizer sees every access that nothing orders. Copies to host memory that is not
// pinned are refused: the real driver would make them wait. Built by the tests, found through LD_LIBRARY_PATH.
//
// $FF_STANDIN_DELAY_US: an operation is preceded by up to that long a pause (default 200).
// $FF_STANDIN_FAIL=NAME:N: the Nth call of NAME fails with CUDA_ERROR_UNKNOWN.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "device/gather.h"

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kAlreadyRegistered = 712, kNotRegistered = 713,
              kNotReady = 600, kCaptureUnsupported = 900, kUnknown = 999;
constexpr int kRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

struct Mark {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  void finish() {
    const std::lock_guard<std::mutex> lock(mutex);
    done = true;
    changed.notify_all();
  }
  void await() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [this] { return done; });
  }
  bool passed() {
    const std::lock_guard<std::mutex> lock(mutex);
    return done;
  }
};

struct Event {
  std::mutex mutex;
  std::shared_ptr<Mark> mark;  // null: never recorded
  std::shared_ptr<Mark> get() {
    const std::lock_guard<std::mutex> lock(mutex);
    return mark;
  }
};

int delay_us() {
  const char* text = std::getenv("FF_STANDIN_DELAY_US");
  return text != nullptr ? std::atoi(text) : 200;
}

class Stream {
 public:
  explicit Stream(unsigned seed) : random_(seed), thread_([this] { run(); }) {}
  ~Stream() {
    push({});
    thread_.join();
  }
  void push(std::function<void()> operation) {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(operation));
    changed_.notify_all();
  }
  void record(const std::shared_ptr<Mark>& mark) {
    push([mark] { mark->finish(); });
  }

 private:
  void run() {
    const int limit = delay_us();
    for (;;) {
      std::function<void()> operation;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return !queue_.empty(); });
        operation = std::move(queue_.front());
        queue_.pop_front();
      }
      if (!operation) return;
      if (limit > 0 && random_() % 4 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random_() % static_cast<unsigned>(limit)));
      }
      operation();
    }
  }
  std::mt19937 random_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::thread thread_;
};

struct Machine {
  std::mutex mutex;
  std::map<Stream*, std::unique_ptr<Stream>> streams;
  std::map<char*, size_t> pinned, device;
  std::map<std::string, int> calls;
  Stream* fallback = nullptr;
  int contexts = 0;
  int modules = 0;
};

Machine& machine() {
  static auto* const one = new Machine;  // never destroyed: streams may be used until the process is gone
  return *one;
}

thread_local int current = 0;  // depth of the context stack
thread_local int capture_mode = 0;  // CU_STREAM_CAPTURE_MODE_GLOBAL
std::atomic<bool> capturing{false};  // somebody captures in that mode, and ...
std::atomic<int> refused{0};         // ... so many calls that nothing orders were refused meanwhile

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

Stream* add_stream() {  // under the mutex
  Machine& m = machine();
  auto stream = std::make_unique<Stream>(static_cast<unsigned>(m.streams.size() + 1));
  Stream* const pointer = stream.get();
  m.streams[pointer] = std::move(stream);
  return pointer;
}

Stream& of(void* stream) {
  if (stream != nullptr) return *static_cast<Stream*>(stream);
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (m.fallback == nullptr) m.fallback = add_stream();
  return *m.fallback;
}

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

int synchronize(Stream& stream) {
  const auto mark = std::make_shared<Mark>();
  stream.record(mark);
  mark->await();
  return kSuccess;
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

// Which calls a capture forbids is the driver's secret; the stand-in forbids all.
#define NEED_CONTEXT(name)                      \
  if (current == 0) return kInvalidContext;     \
  if (capturing && capture_mode != kRelaxed) {  \
    ++refused;                                  \
    return kCaptureUnsupported;                 \
  }                                             \
  if (fails(name)) return kUnknown

std::atomic<uint64_t> waiting_downloads{0};  // bytes of those enqueued and not done

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
