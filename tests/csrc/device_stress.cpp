// The engine with tensors on a device, for the sanitizers: steps and copies ordered by streams only, and cancels at
// random moments. Linked with the stand-in for the CUDA driver, whose device memory is host memory, so that a sanitizer
// sees every access that nothing orders: `device_stress SEED SCENARIO...`.
#include <atomic>
#include <cinttypes>
#include <string>

#include "stress.h"

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxPushCurrent_v2(void*);
int cuStreamCreateWithPriority(void**, unsigned, int);
int cuStreamSynchronize(void*);
int cuStreamDestroy_v2(void*);
int cuMemAlloc_v2(unsigned long long*, size_t);
int cuMemFree_v2(unsigned long long);
int cuMemsetD8Async(unsigned long long, unsigned char, size_t, void*);
}

namespace {

constexpr uint64_t kSent = 3 << 20, kLocal = 500001, kChunk = 65536, kSize = kSent + kLocal;

struct Setup {
  explicit Setup(Random& random) : own({7, 2, kSent, kLocal, 4096, 4096, kChunk}), host(kSize) {
    void* context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxPushCurrent_v2(context));
    OK(cuStreamCreateWithPriority(&stream, 1, 0));
    OK(cuMemAlloc_v2(&base, kSize));
    for (uint64_t at = 0; at < kSize;) {
      const uint64_t bytes = std::min(1 + random.below(random.below(10) == 0 ? 2 << 20 : 9000), kSize - at);
      const uint64_t kind = random.below(10);
      if (kind < 8) {
        segments.push_back({reinterpret_cast<void*>(base + at), bytes, at, 0, 0});
      } else if (kind < 9) {
        segments.push_back({host.data() + at, bytes, at, -1, 0});
      }
      at += bytes;
    }
    const ff_writer_options options{own.base, own.bytes, &page, -1, 0, 1, 5000};
    OK(ff_writer_open(&options, &writer));
    OK(ff_writer_set_segments(writer, segments.data(), segments.size()));
  }
  ~Setup() {
    OK(ff_writer_close(writer));
    OK(cuStreamSynchronize(stream));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(base));
  }
  // All tensors become `value`: the device's when the stream comes to it, the host's at once.
  void step(uint8_t value) {
    OK(cuMemsetD8Async(base, value, kSize, stream));
    std::memset(host.data(), value, kSize);
  }
  // Restores the slot over the tensors and says whether every byte is `value`.
  bool restored_equals(uint32_t slot, uint8_t value) {
    step(0xEE);
    OK(ff_slot_restore(own.base, slot, segments.data(), segments.size()));
    for (const auto& s : segments) {
      const auto* p = static_cast<const uint8_t*>(s.ptr);
      for (uint64_t i = 0; i < s.bytes; ++i) {
        if (p[i] != value) return false;
      }
    }
    return true;
  }

  ArenaMemory own;
  std::vector<uint8_t> host;
  std::vector<ff_segment> segments;
  ff_status_page page{};
  ff_writer* writer = nullptr;
  void* stream = nullptr;
  unsigned long long base = 0;
};

void steady(Random& random) {
  Setup s(random);
  for (int64_t v = 0; v < 30; ++v) {
    if (v >= 2) eventually([&] { return ff_page_load(&s.page.committed) >= stamp_of(1, v - 2); });
    s.step(static_cast<uint8_t>(v + 1));
    OK(ff_writer_begin(s.writer, v % 2, 1, v, s.stream));
    OK(ff_writer_seal(s.writer, v, "s", 1));
    if (random.below(2)) sleep_us(random.below(500));
    int32_t ended;
    OK(ff_writer_step_ended(s.writer, v, &ended));
    OK(ff_writer_device_wait(s.writer, v, s.stream, 60000));
  }
  for (int64_t v = 28; v < 30; ++v) {
    eventually([&] { return s.own.find(1, v) >= 0; });
    CHECK(s.restored_equals(v % 2, static_cast<uint8_t>(v + 1)));
  }
}

// Right after a cancel the host itself writes tensors and slots: nothing may be left that touches them.
void cancel(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 60; ++epoch) {
    s.step(static_cast<uint8_t>(epoch));
    std::thread watchdog([&, delay = random.below(6000)] {
      sleep_us(delay);
      OK(ff_writer_cancel(s.writer));
    });
    if (ff_writer_begin(s.writer, epoch % 2, epoch, 1, s.stream) == FF_OK) {
      const int sealed = ff_writer_seal(s.writer, 1, "s", 1);
      CHECK(sealed == FF_OK || sealed == FF_ECANCELLED || sealed == FF_EINVAL);
      const int waited = ff_writer_device_wait(s.writer, 1, s.stream, 60000);
      CHECK(waited == FF_OK || waited == FF_ECANCELLED || waited == FF_EINVAL);
    }
    watchdog.join();
    OK(ff_writer_cancel(s.writer));
    OK(cuStreamSynchronize(s.stream));
    std::memset(reinterpret_cast<void*>(s.base), 0, kSize);
    std::memset(s.host.data(), 0, kSize);
    for (uint32_t slot = 0; slot < 2; ++slot) {
      if (s.own.info(slot).state == FF_SLOT_COMPLETE) OK(ff_slot_verify(s.own.base, slot));
      OK(ff_slot_corrupt(s.own.base, slot, random.below(kSize)));
      OK(ff_slot_empty(s.own.base, slot));
    }
  }
}

// Paced, to a holder, while two threads launch collectives on streams of the device, and a halt ends each epoch.
void paced(Random& random) {
  Setup s(random);
  void* nccl = nullptr;
  OK(cuStreamCreateWithPriority(&nccl, 1, 0));
  ArenaMemory holder({7, 2, kSent, 0, 4096, 4096, kChunk});
  ff_receiver* receiver = nullptr;
  OK(ff_receiver_open(-1, &receiver));
  std::atomic<bool> finished{false};
  std::atomic<int> followed{0};
  const auto launch = [&](void* begun_on, void* ended_on, uint64_t seed) {
    Random own(seed);
    void* context;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxPushCurrent_v2(context));
    for (int launched = 0; !finished; ++launched) {
      if (launched % 16 == 15) OK(cuStreamSynchronize(ended_on));
      uint64_t ticket;
      OK(ff_writer_collective_begin(s.writer, begun_on, &ticket));
      followed += ticket != 0;  // not where a cancel came in between
      sleep_us(own.below(200));
      OK(own.below(4) == 0 ? ff_writer_collective_forget(s.writer, ticket)
                           : ff_writer_collective_end(s.writer, ticket, ended_on));
    }
  };
  std::thread forward([&] { launch(s.stream, s.stream, 1); });
  std::thread backward([&] { launch(s.stream, nccl, 2); });
  constexpr int64_t kFullSpeed = 4, kVersions = 6;
  uint64_t yielded = 0;
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    const Pair pair = connect_pair(true);
    attach(receiver, over(pair.far), holder, epoch);
    OK(add_holder(s.writer, over(pair.near)));
    for (int64_t v = 0; v < kVersions; ++v) {
      // The first ones one at a time: the pacer learns a speed only from a version that is alone, and holds nothing back
      // before it knows one.
      const int64_t behind = v <= kFullSpeed ? v - 1 : v - 2;
      if (behind >= 0) eventually([&] { return ff_page_load(&s.page.committed) >= stamp_of(epoch, behind); });
      OK(ff_writer_set_window(s.writer, v < kFullSpeed ? 0 : 200000 + random.below(200000)));
      s.step(static_cast<uint8_t>(v + 1));
      OK(ff_writer_begin(s.writer, v % 2, epoch, v, s.stream));
      OK(ff_writer_seal(s.writer, v, "s", 1));
      OK(ff_writer_device_wait(s.writer, v, s.stream, 60000));
    }
    if (epoch == 2) sleep_us(random.below(20000));  // the halt comes while versions are on their way
    else eventually([&] { return ff_page_load(&s.page.committed) >= stamp_of(epoch, kVersions - 1); });
    ff_writer_stats stats;
    OK(ff_writer_stats_get(s.writer, &stats));
    yielded = stats.yielded_ns;
    OK(ff_writer_cancel(s.writer));
    OK(ff_receiver_retire_before(receiver, epoch + 1));
    OK(ff_writer_set_segments(s.writer, s.segments.data(), s.segments.size()));
  }
  finished = true;
  forward.join();
  backward.join();
  CHECK(yielded > 0);
  CHECK(followed > 100);
  const int slot = holder.find(3, kVersions - 1);
  CHECK(slot >= 0);
  OK(ff_slot_verify(holder.base, static_cast<uint32_t>(slot)));
  OK(ff_receiver_close(receiver));
  OK(cuStreamSynchronize(nccl));
  OK(cuStreamDestroy_v2(nccl));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  Random random(std::strtoull(argv[1], nullptr, 10));
  for (int i = 2; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "steady") {
      steady(random);
    } else if (name == "cancel") {
      cancel(random);
    } else if (name == "paced") {
      paced(random);
    } else {
      return 2;
    }
    std::printf("%s ok\n", argv[i]);
  }
  return 0;
}
