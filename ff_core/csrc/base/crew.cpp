#include "base/crew.h"

#include <algorithm>
#include <utility>

#include "base/thread.h"

namespace ff {

Crew::Crew(const char* name, unsigned threads) {
  for (unsigned worker = 0; worker < threads; ++worker) {
    threads_.push_back(start_thread(name, [this, worker] { run(worker); }));
  }
}

Crew::~Crew() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return working_ == 0; });
    stopping_ = true;
    changed_.notify_all();
  }
  for (auto& thread : threads_) thread.join();
}

void Crew::start(uint32_t count, Body body) {
  const std::lock_guard<std::mutex> lock(mutex_);
  body_ = std::move(body);
  count_ = count;
  next_.store(0);
  failure_ = nullptr;
  working_ = size();
  ++round_;
  changed_.notify_all();
}

void Crew::finish() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return working_ == 0; });
  body_ = nullptr;
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Crew::run(unsigned worker) noexcept {
  CpuMeter cpu;
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || round_ != seen; });
    if (stopping_) return;
    seen = round_;
    lock.unlock();
    take_jobs(worker);
    lock.lock();
    cpu_ns_ += cpu.lap();
    if (--working_ == 0) changed_.notify_all();
  }
}

void Crew::take_jobs(unsigned worker) noexcept {
  for (uint64_t job; (job = next_.fetch_add(1)) < count_;) {
    try {
      body_(static_cast<uint32_t>(job), worker);
    } catch (...) {
      next_.store(count_);  // nobody begins another one
      const std::lock_guard<std::mutex> lock(mutex_);
      if (failure_ == nullptr) failure_ = std::current_exception();
    }
  }
}

unsigned crew_size() {
  return std::clamp(std::thread::hardware_concurrency() / 2, 1u, 8u);
}

}  // namespace ff
