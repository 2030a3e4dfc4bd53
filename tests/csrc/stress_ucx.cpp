// The same through UCX: over whatever transports of UCX's own $UCX_TLS names.
#include <algorithm>
#include <atomic>

#include "stress_setup.h"

namespace {

// FF_OK, or what add_holder said; the receiver's end is attached in either case.
int connect_ucx(Setup& s, ArenaMemory& holder, const Pair& pair, uint64_t epoch) {
  attach(s.receiver, over(pair.far, "ucx"), holder, epoch);
  return add_holder(s.writer, over(pair.near, "ucx"));
}

void connect_both(Setup& s, uint64_t epoch) {
  for (ArenaMemory* holder : {&s.holder0, &s.holder1}) OK(connect_ucx(s, *holder, connect_pair(true), epoch));
}

// What complete slots of an arena hold matches their checksums.
void check_whole(const ArenaMemory& arena) {
  for (uint32_t slot = 0; slot < 2; ++slot) {
    if (arena.info(slot).state == FF_SLOT_COMPLETE) OK(ff_slot_verify(arena.base, slot));
  }
}

// Passes bytes on in both directions; does something to the forward (or backward) stream at its byte number `at`.
class Proxy {
 public:
  enum class Harm { kCut, kFlip };
  Proxy(const Pair& sender, const Pair& receiver, Harm harm, bool backward, uint64_t at, int bit)
      : sender_(sender.far), receiver_(receiver.near) {
    there_ = std::thread([=] { pass(sender_, receiver_, harm, backward ? UINT64_MAX : at, bit); });
    back_ = std::thread([=] { pass(receiver_, sender_, harm, backward ? at : UINT64_MAX, bit); });
  }
  ~Proxy() {
    there_.join();
    back_.join();
    ::close(sender_);
    ::close(receiver_);
  }

 private:
  void pass(int from, int to, Harm harm, uint64_t at, int bit) {
    uint64_t passed = 0;
    char buffer[701];
    for (;;) {
      const bool cut = harm == Harm::kCut && at != UINT64_MAX;
      const size_t most = cut ? std::min<uint64_t>(sizeof buffer, at - passed) : sizeof buffer;
      const ssize_t got = most > 0 ? ::recv(from, buffer, most, 0) : 0;
      if (got <= 0) break;
      const auto count = static_cast<uint64_t>(got);
      if (harm == Harm::kFlip && at >= passed && at < passed + count) {
        buffer[at - passed] ^= static_cast<char>(1 << bit);
      }
      passed += count;
      if (::send(to, buffer, count, MSG_NOSIGNAL) != got) break;
    }
    ::shutdown(sender_, SHUT_RDWR);
    ::shutdown(receiver_, SHUT_RDWR);
  }

  const int sender_, receiver_;
  std::thread there_, back_;
};

// Two versions through a connection that is harmed somewhere. Nobody waits for ever, what is complete is whole.
void harmed(Setup& s, uint64_t epoch, Proxy::Harm harm, bool backward, uint64_t at, int bit) {
  const Pair near = connect_pair(false), far = connect_pair(epoch % 2 == 0);
  Proxy proxy(near, far, harm, backward, at, bit);
  const bool connected = connect_ucx(s, s.holder0, {near.near, far.far}, epoch) == FF_OK;
  for (int64_t v = 0; v < 2 && connected; ++v) {
    s.tensors.step(static_cast<uint8_t>(epoch + static_cast<uint64_t>(v)));
    OK(ff_writer_begin(s.writer, static_cast<uint32_t>(v), epoch, v, nullptr));
    OK(ff_writer_seal(s.writer, v, "s", 1));
    OK(ff_writer_wait_copied(s.writer, v, 60000));
  }
  ff_writer_stats stats{};
  eventually([&] {
    OK(ff_writer_stats_get(s.writer, &stats));
    return !connected || stats.holders_lost == 1 || s.committed(epoch, 1);
  });
  const bool second = connected && s.committed(epoch, 1);
  if (connected && !second) CHECK(ff_writer_check(s.writer) != FF_OK);
  OK(ff_writer_cancel(s.writer));
  OK(ff_receiver_retire_before(s.receiver, epoch + 1));
  check_whole(s.holder0);
  for (int64_t v = 0; v < 2; ++v) {
    const int slot = s.holder0.find(epoch, v);
    if (v == 1 && second) CHECK(slot >= 0);
    if (slot >= 0) {
      CHECK(s.tensors.restored_equals(s.holder0, slot, kSent, static_cast<uint8_t>(epoch + static_cast<uint64_t>(v))));
    }
  }
}

}  // namespace

void ucx_steady(Random& random) {
  Setup s(random);
  connect_both(s, 3);
  constexpr int64_t kVersions = 16;
  for (int64_t v = 0; v < kVersions; ++v) {
    s.tensors.step(static_cast<uint8_t>(v + 1));
    if (v >= 2) eventually([&] { return s.committed(3, v - 2); });
    OK(ff_writer_begin(s.writer, v % 2, 3, v, nullptr));
    if (random.below(2)) sleep_us(random.below(300));
    OK(ff_writer_seal(s.writer, v, "s", 1));
    OK(ff_writer_wait_copied(s.writer, v, 60000));
  }
  eventually([&] { return s.committed(3, kVersions - 1); });
  for (ArenaMemory* arena : {&s.own, &s.holder0, &s.holder1}) {
    const int slot = arena->find(3, kVersions - 1);
    CHECK(slot >= 0 && s.tensors.restored_equals(*arena, slot, kSent, static_cast<uint8_t>(kVersions)));
  }
}

// A watchdog cancels at random moments, now and then while holders are being connected to; right after it, slots on both
// sides are written by others.
void ucx_cancel(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 20; ++epoch) {
    const bool early = epoch % 3 == 0;
    if (!early) connect_both(s, epoch);
    std::thread watchdog([&, delay = random.below(early ? 30000 : 6000)] {
      sleep_us(delay);
      OK(ff_writer_cancel(s.writer));
    });
    for (ArenaMemory* holder : {&s.holder0, &s.holder1}) {
      if (!early) break;
      const int code = connect_ucx(s, *holder, connect_pair(true), epoch);
      CHECK(code == FF_OK || code == FF_ECANCELLED);
    }
    for (int64_t v = 0; v < 2; ++v) {
      if (ff_writer_begin(s.writer, v, epoch, v, nullptr) != FF_OK) break;
      const int sealed = ff_writer_seal(s.writer, v, "s", 1);
      CHECK(sealed == FF_OK || sealed == FF_ECANCELLED || sealed == FF_EINVAL);
    }
    watchdog.join();
    OK(ff_writer_cancel(s.writer));
    s.tensors.step(0);
    for (uint32_t slot = 0; slot < 2; ++slot) {  // the sender's: nothing of the engine reads them now
      OK(ff_slot_corrupt(s.own.base, slot, random.below(kSent)));
      OK(ff_slot_empty(s.own.base, slot));
    }
    OK(ff_receiver_retire_before(s.receiver, epoch + 1));
    for (ArenaMemory* arena : {&s.holder0, &s.holder1}) {
      check_whole(*arena);
      for (uint32_t slot = 0; slot < 2; ++slot) OK(ff_slot_corrupt(arena->base, slot, random.below(kSent)));
      for (uint32_t slot = 0; slot < 2; ++slot) OK(ff_slot_empty(arena->base, slot));
    }
  }
}

// The cable of the control connection is pulled after a random number of bytes, or one bit of it flipped.
void ucx_unplug(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 30; ++epoch) {
    const bool backward = epoch % 3 == 0;
    harmed(s, epoch, Proxy::Harm::kCut, backward, random.below(backward ? 500 : 6000), 0);
  }
}

void ucx_fuzz(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 30; ++epoch) {
    const bool backward = epoch % 3 == 0;
    const auto bit = static_cast<int>(random.below(8));
    harmed(s, epoch, Proxy::Harm::kFlip, backward, random.below(epoch % 2 == 0 ? 400 : 5000), bit);
  }
}

// Slots sent by an agent, some interrupted by shutdown at a random moment.
void ucx_send_slot(Random& random) {
  Setup s(random);
  s.tensors.step(5);
  OK(ff_writer_begin(s.writer, 0, 1, 8, nullptr));
  OK(ff_writer_seal(s.writer, 8, "scalars", 7));
  eventually([&] { return s.committed(1, 8); });
  for (int round = 0; round < 20; ++round) {
    ArenaMemory newcomer(layout_of(kLocal));
    const Pair pair = connect_pair(round % 2 == 0);
    attach(s.receiver, over(pair.far, "ucx"), newcomer, 1);
    const int handle = ::dup(pair.near);
    const bool interrupt = round % 4 != 0;
    std::thread killer([&, delay = random.below(20000)] {
      sleep_us(delay);
      if (interrupt) ::shutdown(handle, SHUT_RDWR);
    });
    const int code = send_slot_over(over(pair.near, "ucx"), s.own, 0, 1);
    killer.join();
    ::close(handle);
    CHECK(code == FF_OK || (interrupt && (code == FF_EIO || code == FF_ETRANSPORT)));
    OK(ff_receiver_detach(s.receiver, newcomer.base));
    const int slot = newcomer.find(1, 8);
    CHECK(code != FF_OK || slot >= 0);
    if (slot >= 0) CHECK(s.tensors.restored_equals(newcomer, slot, kSent, 5));
  }
}
