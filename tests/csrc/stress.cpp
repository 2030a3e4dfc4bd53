// Exercises the engine through its C interface from many threads, for the sanitizers: `stress SEED SCENARIO...`.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <string>

#include "stress.h"

Pair connect_pair(bool tcp) {
  int fds[2];
  if (!tcp) {
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    return {fds[0], fds[1]};
  }
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && ::listen(listener, 1) == 0);
  socklen_t size = sizeof address;
  CHECK(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  fds[0] = ::socket(AF_INET, SOCK_STREAM, 0);
  CHECK(::connect(fds[0], reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  fds[1] = ::accept(listener, nullptr, nullptr);
  CHECK(fds[1] >= 0);
  ::close(listener);
  return {fds[0], fds[1]};
}

namespace {

constexpr uint64_t kSent = 300000, kLocal = 50001, kChunk = 8192;

ff_arena_layout layout_of(uint64_t local) {
  return {7, 2, kSent, local, 4096, 4096, kChunk};
}

// One worker and its holders' agents.
struct Setup {
  explicit Setup(Random& random, uint64_t bandwidth = 0)
      : own(layout_of(kLocal)), holder0(layout_of(0)), holder1(layout_of(0)), tensors(random, kSent + kLocal, 60) {
    page = {};
    const ff_writer_options options{own.base, own.bytes, &page, -1, bandwidth, 1, 5000};
    OK(ff_writer_open(&options, &writer));
    OK(ff_writer_set_segments(writer, tensors.segments.data(), tensors.segments.size()));
    OK(ff_receiver_open(-1, &receiver));
    OK(ff_journal_set(own.base, "journal", 7));
  }
  ~Setup() {
    OK(ff_writer_close(writer));
    OK(ff_receiver_close(receiver));
  }
  void connect(uint64_t epoch, bool tcp) {
    for (ArenaMemory* holder : {&holder0, &holder1}) {
      const Pair pair = connect_pair(tcp);
      OK(ff_receiver_attach(receiver, pair.far, holder->base, holder->bytes, epoch, nullptr));
      OK(ff_writer_add_holder(writer, pair.near));
    }
  }
  bool committed(uint64_t epoch, int64_t version) const {
    return ff_page_load(&page.committed) >= stamp_of(epoch, version);
  }

  ArenaMemory own, holder0, holder1;
  Tensors tensors;
  ff_status_page page;
  ff_writer* writer = nullptr;
  ff_receiver* receiver = nullptr;
};

// Iterations as a worker does them; two versions in flight; seals before and after the copy.
void steady(Random& random) {
  for (const bool tcp : {false, true}) {
    Setup s(random);
    s.connect(3, tcp);
    constexpr int64_t kVersions = 24;
    for (int64_t v = 0; v < kVersions; ++v) {
      s.tensors.step(static_cast<uint8_t>(v + 1));
      if (v >= 2) eventually([&] { return s.committed(3, v - 2); });
      OK(ff_writer_begin(s.writer, v % 2, 3, v));
      const auto blob = random.bytes(random.below(4096));
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
      const int began = ff_writer_begin(s.writer, v % 2, epoch, v);
      if (began != FF_OK) break;  // cancelled, or (third version) the first slot is still in flight
      const int sealed = ff_writer_seal(s.writer, v, "s", 1);
      const int copied = ff_writer_wait_copied(s.writer, v, 60000);
      CHECK(sealed == FF_OK || sealed == FF_ECANCELLED || sealed == FF_EINVAL);
      CHECK(copied == FF_OK || copied == FF_ECANCELLED || copied == FF_EINVAL);
      if (copied == FF_OK) s.tensors.step(static_cast<uint8_t>(epoch));
    }
    watchdog.join();
    OK(ff_writer_cancel(s.writer));  // a begin may have slipped in behind the first one
    OK(ff_receiver_fence(s.receiver, epoch + 1));
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

// The cable is pulled after a random number of bytes in either direction. What is complete is always whole.
void unplug(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 40; ++epoch) {
    const Pair to_proxy = connect_pair(false), to_receiver = connect_pair(epoch % 2 == 0);
    const uint64_t limit = random.below(3 * kSent);
    std::thread proxy([&, limit] {
      uint64_t passed = 0;
      std::vector<char> buffer(7001);
      std::thread back([&] {
        char answer[64];
        for (ssize_t got; (got = ::recv(to_receiver.near, answer, sizeof answer, 0)) > 0;) {
          if (::send(to_proxy.far, answer, static_cast<size_t>(got), MSG_NOSIGNAL) != got) break;
        }
      });
      while (passed < limit) {
        const ssize_t got = ::recv(to_proxy.far, buffer.data(), std::min<uint64_t>(buffer.size(), limit - passed), 0);
        if (got <= 0) break;
        passed += static_cast<uint64_t>(got);
        if (::send(to_receiver.near, buffer.data(), static_cast<size_t>(got), MSG_NOSIGNAL) != got) break;
      }
      ::shutdown(to_proxy.far, SHUT_RDWR);
      ::shutdown(to_receiver.near, SHUT_RDWR);
      back.join();
    });
    OK(ff_receiver_attach(s.receiver, to_receiver.far, s.holder0.base, s.holder0.bytes, epoch, nullptr));
    OK(ff_writer_add_holder(s.writer, to_proxy.near));
    for (int64_t v = 0; v < 2; ++v) {  // never blocked by the lost holder
      s.tensors.step(static_cast<uint8_t>(epoch + v));
      OK(ff_writer_begin(s.writer, v % 2, epoch, v));
      OK(ff_writer_seal(s.writer, v, "s", 1));
      OK(ff_writer_wait_copied(s.writer, v, 60000));
    }
    ff_writer_stats stats;
    eventually([&] {
      OK(ff_writer_stats_get(s.writer, &stats));
      return stats.holders_lost == 1 || s.committed(epoch, 1);
    });
    if (!s.committed(epoch, 1)) CHECK(ff_writer_check(s.writer) != FF_OK);
    const bool second = s.committed(epoch, 1);
    OK(ff_writer_cancel(s.writer));
    proxy.join();
    ::close(to_proxy.far);
    ::close(to_receiver.near);
    OK(ff_receiver_fence(s.receiver, epoch + 1));
    for (int64_t v = 0; v < 2; ++v) {
      const int slot = s.holder0.find(epoch, v);
      if (v == 1 && second) CHECK(slot >= 0);
      if (slot >= 0) CHECK(s.tensors.restored_equals(s.holder0, slot, kSent, static_cast<uint8_t>(epoch + v)));
    }
  }
}

// Bytes that are no frames, and frames with one bit flipped, close the connection and leave complete slots alone.
void malformed(Random& random) {
  Setup s(random);
  s.connect(1, false);
  s.tensors.step(9);
  OK(ff_writer_begin(s.writer, 0, 1, 0));
  OK(ff_writer_seal(s.writer, 0, "s", 1));
  eventually([&] { return s.committed(1, 0); });
  OK(ff_writer_cancel(s.writer));

  // Record one whole conversation.
  std::vector<uint8_t> recorded;
  const Pair wire = connect_pair(false);
  const int slot = s.own.find(1, 0);
  CHECK(slot >= 0);
  std::thread sender([&] { ff_send_slot(wire.near, s.own.base, s.own.bytes, static_cast<uint32_t>(slot), 1, 60000); });
  constexpr size_t kHeader = 56;
  const size_t whole = (kHeader + 7) + (kHeader + 16) + kSent + (kSent + kChunk - 1) / kChunk * kHeader + (kHeader + 1);
  recorded.resize(whole);
  for (size_t got = 0; got < whole;) {
    const ssize_t part = ::recv(wire.far, recorded.data() + got, whole - got, 0);
    CHECK(part > 0);
    got += static_cast<size_t>(part);
  }
  ::close(wire.far);
  sender.join();

  for (int round = 0; round < 60; ++round) {
    std::vector<uint8_t> bad = recorded;
    const bool garbage = round % 3 == 0;
    if (garbage) {
      bad = random.bytes(1 + random.below(2000));
    } else {
      bad[random.below(round % 3 == 1 ? bad.size() : 300)] ^= static_cast<uint8_t>(1 << random.below(8));
      if (random.below(3) == 0) bad.resize(random.below(bad.size()));
    }
    const Pair pair = connect_pair(false);
    uint64_t id;
    OK(ff_receiver_attach(s.receiver, pair.far, s.holder0.base, s.holder0.bytes, 1, &id));
    for (size_t sent = 0; sent < bad.size();) {
      const ssize_t part = ::send(pair.near, bad.data() + sent, bad.size() - sent, MSG_NOSIGNAL);
      if (part <= 0) break;
      sent += static_cast<size_t>(part);
    }
    ::shutdown(pair.near, SHUT_WR);
    bool ended = false;
    eventually([&] {
      ff_receiver_status status[8];
      size_t count;
      OK(ff_receiver_poll(s.receiver, status, 8, &count));
      for (size_t i = 0; i < count; ++i) {
        if (status[i].connection_id != id || status[i].open) continue;
        ended = true;
        CHECK(status[i].error == FF_EPROTO || status[i].error == FF_EIO);
        CHECK(status[i].message[0] != 0);
      }
      return ended;
    });
    ::close(pair.near);
    const int kept = s.holder0.find(1, 0);
    CHECK(kept >= 0);
    OK(ff_slot_verify(s.holder0.base, static_cast<uint32_t>(kept)));
  }
}

// Slots sent by an agent, interrupted by shutdown at random moments, while versions of the next epoch arrive.
void send_slot(Random& random) {
  Setup s(random);
  s.tensors.step(5);
  OK(ff_writer_begin(s.writer, 0, 1, 8));
  OK(ff_writer_seal(s.writer, 8, "scalars", 7));
  eventually([&] { return s.committed(1, 8); });
  for (int round = 0; round < 40; ++round) {
    ArenaMemory newcomer(layout_of(kLocal));
    const Pair pair = connect_pair(round % 2 == 0);
    OK(ff_receiver_attach(s.receiver, pair.far, newcomer.base, newcomer.bytes, 1, nullptr));
    const int handle = ::dup(pair.near);
    const bool interrupt = round % 4 != 0;
    std::thread killer([&, delay = random.below(1500)] {
      if (!interrupt) return;
      sleep_us(delay);
      ::shutdown(handle, SHUT_RDWR);
    });
    const int code = ff_send_slot(pair.near, s.own.base, s.own.bytes, 0, 1, 60000);
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

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void(Random&)>> scenarios = {
      {"steady", steady},       {"cancel", cancel},       {"unplug", unplug},
      {"malformed", malformed}, {"send_slot", send_slot}, {"gate", gate}};
  if (argc < 2) return 2;
  Random random(std::strtoull(argv[1], nullptr, 10));
  for (int i = 2; i < argc; ++i) {
    const auto scenario = scenarios.find(argv[i]);
    if (scenario == scenarios.end()) {
      std::fprintf(stderr, "no scenario %s\n", argv[i]);
      return 2;
    }
    scenario->second(random);
    std::printf("%s ok\n", argv[i]);
  }
  return 0;
}
