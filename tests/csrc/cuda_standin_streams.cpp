// Streams and events of the stand-in for the CUDA driver.
#include <chrono>

#include "cuda_standin.h"

namespace standin {

void Stream::run() {
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

int synchronize(Stream& stream) {
  const auto mark = std::make_shared<Mark>();
  stream.record(mark);
  mark->await();
  return kSuccess;
}

}  // namespace standin

using namespace standin;

#pragma GCC visibility push(default)
extern "C" {

int cuCtxSynchronize() {
  NEED_CONTEXT("cuCtxSynchronize");
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
}
#pragma GCC visibility pop
