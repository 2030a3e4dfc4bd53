// What the parts of the stand-in for the CUDA driver share: its streams, and the machine that they belong to.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

namespace standin {

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kAlreadyRegistered = 712, kNotRegistered = 713,
              kNotReady = 600, kCaptureUnsupported = 900, kUnknown = 999;
constexpr int kRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

// Something that happens once.
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

// A thread that works off its queue, with pauses.
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
  void run();

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

Machine& machine();
extern thread_local int current;       // depth of the context stack
extern thread_local int capture_mode;  // of this thread
extern std::atomic<bool> capturing;    // somebody captures in the mode "global", and ...
extern std::atomic<int> refused;       // ... so many calls that nothing orders were refused meanwhile

int delay_us();
bool fails(const char* name);  // this call of `name` is to
Stream* add_stream();          // under the machine's mutex
Stream& of(void* stream);      // null: the default stream
int synchronize(Stream& stream);

}  // namespace standin

// Which calls a capture forbids is the driver's secret; the stand-in forbids all.
#define NEED_CONTEXT(name)                      \
  if (current == 0) return kInvalidContext;     \
  if (capturing && capture_mode != kRelaxed) {  \
    ++refused;                                  \
    return kCaptureUnsupported;                 \
  }                                             \
  if (fails(name)) return kUnknown
