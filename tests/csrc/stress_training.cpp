// What happens while nothing is wrong with the peers: versions, cancels, slots to other agents, the gate.
#include <algorithm>
#include <atomic>

#include "stress_setup.h"

// Iterations as a worker does them; two versions in flight; seals before and after the copy.
void steady(Random& random) {
  for (const bool tcp : {false, true}) {
    Setup s(random);
    s.connect(3, tcp);
    if (tcp) OK(ff_writer_set_window(s.writer, 1 + random.below(4000)));
    constexpr int64_t kVersions = 24;
    for (int64_t v = 0; v < kVersions; ++v) {
      s.tensors.step(static_cast<uint8_t>(v + 1));
      if (v >= 2) eventually([&] { return s.committed(3, v - 2); });
      OK(ff_writer_begin(s.writer, v % 2, 3, v, nullptr));
      const auto blob = random.bytes(random.below(4096));
      ff_page_store(&s.page.activity, random.below(2));
      if (random.below(2)) sleep_us(random.below(300));
      OK(ff_writer_seal(s.writer, v, blob.data(), blob.size()));
      OK(ff_writer_wait_copied(s.writer, v, 60000));
    }
    eventually([&] { return s.committed(3, kVersions - 1); });
    for (ArenaMemory* arena : {&s.own, &s.holder0, &s.holder1}) {
      const int slot = arena->find(3, kVersions - 1);
      CHECK(slot >= 0);
      CHECK(s.tensors.restored_equals(*arena, slot, kSent, static_cast<uint8_t>(kVersions)));
      const void* journal;
      uint64_t bytes;
      OK(ff_journal_get(arena->base, &journal, &bytes));
      CHECK(bytes == 7 && std::memcmp(journal, "journal", 7) == 0);
    }
    ff_writer_stats stats;
    OK(ff_writer_stats_get(s.writer, &stats));
    CHECK(stats.versions == kVersions && stats.holders == 2 && stats.holders_lost == 0);
  }
}

// A watchdog cancels at random moments; right after it, tensors and slots are written by others.
void cancel(Random& random) {
  Setup s(random, random.below(2) ? 0 : 3000000);
  for (uint64_t epoch = 1; epoch <= 40; ++epoch) {
    s.connect(epoch, epoch % 2 == 0);
    std::atomic<bool> done{false};
    std::thread watchdog([&, delay = random.below(4000)] {
      sleep_us(delay);
      OK(ff_writer_cancel(s.writer));
      done = true;
    });
    for (int64_t v = 0; v < 3; ++v) {
      const int began = ff_writer_begin(s.writer, v % 2, epoch, v, nullptr);
      if (began != FF_OK) break;  // cancelled, or (third version) the first slot is still in flight
      const int sealed = ff_writer_seal(s.writer, v, "s", 1);
      const int copied = ff_writer_wait_copied(s.writer, v, 60000);
      CHECK(sealed == FF_OK || sealed == FF_ECANCELLED || sealed == FF_EINVAL);
      CHECK(copied == FF_OK || copied == FF_ECANCELLED || copied == FF_EINVAL);
      if (copied == FF_OK) s.tensors.step(static_cast<uint8_t>(epoch));
    }
    watchdog.join();
    OK(ff_writer_cancel(s.writer));  // a begin may have slipped in behind the first one
    OK(ff_receiver_retire_before(s.receiver, epoch + 1));
    s.tensors.step(0);
    for (ArenaMemory* arena : {&s.own, &s.holder0, &s.holder1}) {
      for (uint32_t slot = 0; slot < 2; ++slot) {
        const ff_slot_info info = arena->info(slot);
        if (info.state == FF_SLOT_COMPLETE) OK(ff_slot_verify(arena->base, slot));
        OK(ff_slot_corrupt(arena->base, slot, random.below(kSent)));
        OK(ff_slot_empty(arena->base, slot));
      }
    }
    ff_receiver_status status[8];
    size_t count;
    OK(ff_receiver_poll(s.receiver, status, 8, &count));
    for (size_t i = 0; i < count; ++i) CHECK(!status[i].open);
  }
}

// Slots sent by an agent, interrupted by shutdown at random moments, while versions of the next epoch arrive.
void send_slot(Random& random) {
  Setup s(random);
  s.tensors.step(5);
  OK(ff_writer_begin(s.writer, 0, 1, 8, nullptr));
  OK(ff_writer_seal(s.writer, 8, "scalars", 7));
  eventually([&] { return s.committed(1, 8); });
  for (int round = 0; round < 40; ++round) {
    ArenaMemory newcomer(layout_of(kLocal));
    const bool shared = round % 3 == 0, striped = round % 3 == 1;
    const Pairs pairs(striped ? 1 + random.below(4) : 1, !shared && round % 2 == 0);
    if (shared) {
      attach(s.receiver, over(pairs.far[0], "shm", s.own.file()), newcomer, 1);
    } else {
      attach(s.receiver, over(pairs.far), newcomer, 1);
    }
    const int handle = ::dup(pairs.near[random.below(pairs.near.size())]);
    const bool interrupt = round % 4 != 0;
    std::thread killer([&, delay = random.below(1500)] {
      if (!interrupt) return;
      sleep_us(delay);
      ::shutdown(handle, SHUT_RDWR);
    });
    const int code = send_slot_over(shared ? over(pairs.near[0], "shm") : over(pairs.near), s.own, 0, 1);
    killer.join();
    ::close(handle);
    CHECK(interrupt ? code == FF_OK || code == FF_EIO : code == FF_OK);
    OK(ff_receiver_detach(s.receiver, newcomer.base));
    const int slot = newcomer.find(1, 8);
    CHECK(code != FF_OK || slot >= 0);
    if (slot < 0) continue;
    CHECK(!newcomer.info(static_cast<uint32_t>(slot)).full);
    CHECK(s.tensors.restored_equals(newcomer, slot, kSent, 5));
    CHECK(ff_slot_restore(newcomer.base, static_cast<uint32_t>(slot), s.tensors.segments.data(),
                          s.tensors.segments.size()) == FF_ECORRUPT);
  }
}

// Gate waiters of one page, released by W or by a halt.
void gate(Random& random) {
  for (int round = 0; round < 30; ++round) {
    ff_status_page page{};
    const bool halt = round % 2 == 0;
    std::vector<std::thread> waiters;
    for (int i = 0; i < 4; ++i) {
      waiters.emplace_back(
          [&] { CHECK(ff_page_wait_w(&page, stamp_of(2, 10), 2, 60000) == (halt ? FF_EHALTED : FF_OK)); });
    }
    for (int64_t v = 5; v < 10; ++v) {
      ff_page_store(&page.w_stamp, stamp_of(2, v));
      ff_page_notify(&page);
      sleep_us(random.below(200));
    }
    ff_page_store(halt ? &page.halt_epoch : &page.w_stamp, halt ? 3 : stamp_of(2, 10));
    ff_page_notify(&page);
    for (auto& waiter : waiters) waiter.join();
    CHECK(ff_page_wait_w(&page, stamp_of(2, 11), 3, 5) == FF_ETIMEOUT);
  }
}
