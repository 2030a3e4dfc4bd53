// A crew: threads that share numbered jobs, handed out in order. They sleep between pieces of work.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ff {

class Crew {
 public:
  // job: 0 to count - 1.  worker: 0 to size() - 1, for memory of its own.
  using Body = std::function<void(uint32_t job, unsigned worker)>;

  explicit Crew(const char* name, unsigned threads);  // name: 15 characters at most; lives as long as the crew
  ~Crew();                                            // finishes, then joins
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  unsigned size() const { return static_cast<unsigned>(threads_.size()); }

  void start(uint32_t count, Body body);  // returns at once; the work before must be finished
  void finish();                          // waits until no thread is at it; throws what the first failing job threw
  uint64_t cpu_ns() const { return cpu_ns_.load(); }

 private:
  void run(unsigned worker) noexcept;
  void take_jobs(unsigned worker) noexcept;

  std::mutex mutex_;
  std::condition_variable changed_;
  Body body_;
  uint64_t round_ = 0;
  unsigned working_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
  uint32_t count_ = 0;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> cpu_ns_{0};
  std::vector<std::thread> threads_;
};

// How many threads keep up with a device's bus: half the machine's, 8 at most.
unsigned crew_size();

}  // namespace ff
