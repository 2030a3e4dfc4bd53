// A stand-in for the CUDA driver's library, on the host: what the engine and its tests use of libcuda.so.1, and the
// rules that matter for ordering. Each stream is a thread that works through its queue, as late as it likes; "device
// memory" is host memory, so that a sanitizer sees every access that nothing orders. Copies to host memory that is not
// pinned are refused: the real driver would make them wait. Built by the tests, found through LD_LIBRARY_PATH.
//
// $FF_STANDIN_DELAY_US: an operation is preceded by up to that long a pause (default 200).
// $FF_STANDIN_FAIL=NAME:N: the Nth call of NAME fails with CUDA_ERROR_UNKNOWN.
//
// Here: the machine behind it, its streams, events and memory.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

namespace standin {

inline constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kAlreadyRegistered = 712, kNotRegistered = 713,
              kNotReady = 600, kCaptureUnsupported = 900, kUnknown = 999;
inline constexpr int kRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

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

inline int delay_us() {
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

inline Machine& machine() {
  static auto* const one = new Machine;  // never destroyed: streams may be used until the process is gone
  return *one;
}

inline thread_local int current = 0;  // depth of the context stack
inline thread_local int capture_mode = 0;  // CU_STREAM_CAPTURE_MODE_GLOBAL
inline std::atomic<bool> capturing{false};  // somebody captures in that mode, and ...
inline std::atomic<int> refused{0};         // ... so many calls that nothing orders were refused meanwhile

inline bool fails(const char* name) {
  const char* text = std::getenv("FF_STANDIN_FAIL");
  if (text == nullptr) return false;
  const std::string wanted(text);
  const size_t colon = wanted.find(':');
  if (wanted.substr(0, colon) != name) return false;
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  return ++m.calls[name] == std::atoi(wanted.c_str() + colon + 1);
}

inline Stream* add_stream() {  // under the mutex
  Machine& m = machine();
  auto stream = std::make_unique<Stream>(static_cast<unsigned>(m.streams.size() + 1));
  Stream* const pointer = stream.get();
  m.streams[pointer] = std::move(stream);
  return pointer;
}

inline Stream& of(void* stream) {
  if (stream != nullptr) return *static_cast<Stream*>(stream);
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (m.fallback == nullptr) m.fallback = add_stream();
  return *m.fallback;
}

inline bool within(const std::map<char*, size_t>& ranges, const void* start, size_t bytes) {
  auto* const from = static_cast<char*>(const_cast<void*>(start));
  auto range = ranges.upper_bound(from);
  if (range == ranges.begin()) return false;
  --range;
  return from + bytes <= range->first + range->second;
}

inline bool is_pinned(const void* start, size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return within(machine().pinned, start, bytes);
}

inline bool is_device(const void* start, size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return within(machine().device, start, bytes);
}

inline int synchronize(Stream& stream) {
  const auto mark = std::make_shared<Mark>();
  stream.record(mark);
  mark->await();
  return kSuccess;
}
inline std::atomic<uint64_t> waiting_downloads{0};  // bytes of those enqueued and not done

}  // namespace standin

// Which calls a capture forbids is the driver's secret; the stand-in forbids all.
#define NEED_CONTEXT(name)                      \
  if (standin::current == 0) return standin::kInvalidContext;     \
  if (standin::capturing && standin::capture_mode != standin::kRelaxed) {  \
    ++standin::refused;                                  \
    return standin::kCaptureUnsupported;                 \
  }                                             \
  if (standin::fails(name)) return standin::kUnknown
