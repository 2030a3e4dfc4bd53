// Peers that vanish or talk nonsense.
#include <algorithm>
#include <memory>

#include "stress_setup.h"

namespace {

constexpr size_t kHeader = 56, kChunks = (kSent + kChunk - 1) / kChunk;

// On the socket: journal, BEGIN, chunks, a blob of one byte. Over shared memory chunks are eight bytes.
constexpr size_t inline_bytes(size_t journal) {
  return (kHeader + journal) + (kHeader + 16) + kSent + kChunks * kHeader + (kHeader + 1);
}
constexpr size_t shared_bytes(size_t journal) { return inline_bytes(journal) - kSent + kChunks * 8; }

// Two versions of this epoch, not held up by a lost holder; then what complete slots hold is whole.
void two_versions(Setup& s, uint64_t epoch) {
  for (int64_t v = 0; v < 2; ++v) {
    s.tensors.step(static_cast<uint8_t>(epoch + v));
    OK(ff_writer_begin(s.writer, v % 2, epoch, v, nullptr));
    OK(ff_writer_seal(s.writer, v, "s", 1));
    OK(ff_writer_wait_copied(s.writer, v, 60000));
  }
  ff_writer_stats stats;
  eventually([&] {
    OK(ff_writer_stats_get(s.writer, &stats));
    return stats.holders_lost == 1 || s.committed(epoch, 1);
  });
  if (!s.committed(epoch, 1)) CHECK(ff_writer_check(s.writer) != FF_OK);
}

void check_holder(Setup& s, uint64_t epoch, bool second) {
  OK(ff_receiver_retire_before(s.receiver, epoch + 1));
  for (int64_t v = 0; v < 2; ++v) {
    const int slot = s.holder0.find(epoch, v);
    if (v == 1 && second) CHECK(slot >= 0);
    if (slot >= 0) CHECK(s.tensors.restored_equals(s.holder0, slot, kSent, static_cast<uint8_t>(epoch + v)));
  }
}

// Passes one stream's bytes on in both directions; with a limit, cuts it after so many from the sender.
class Relay {
 public:
  Relay(int sender, int receiver, uint64_t limit) : sender_(sender), receiver_(receiver) {
    there_ = std::thread([this, limit] { pass(sender_, receiver_, limit); });
    back_ = std::thread([this] { pass(receiver_, sender_, UINT64_MAX); });
  }
  ~Relay() {
    there_.join();
    back_.join();
    ::close(sender_);
    ::close(receiver_);
  }

 private:
  void pass(int from, int to, uint64_t left) {
    std::vector<char> buffer(7001);
    while (left > 0) {
      const ssize_t got = ::recv(from, buffer.data(), std::min<uint64_t>(buffer.size(), left), 0);
      if (got <= 0 || ::send(to, buffer.data(), static_cast<size_t>(got), MSG_NOSIGNAL) != got) break;
      left -= static_cast<uint64_t>(got);
    }
    ::shutdown(sender_, SHUT_RDWR);
    ::shutdown(receiver_, SHUT_RDWR);
  }

  const int sender_, receiver_;
  std::thread there_, back_;
};

}  // namespace

// One of several streams breaks after a random number of bytes: the connection ends, what is complete is whole.
void streams_unplug(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 40; ++epoch) {
    const size_t streams = 2 + random.below(3), cut = random.below(streams);
    const bool tcp = epoch % 2 == 0;
    const Pairs senders(streams, tcp), receivers(streams, tcp);
    bool second;
    {
      std::vector<std::unique_ptr<Relay>> relays;
      for (size_t i = 0; i < streams; ++i) {
        const uint64_t limit = i == cut ? random.below(3 * kSent / streams) : UINT64_MAX;
        relays.push_back(std::make_unique<Relay>(senders.far[i], receivers.near[i], limit));
      }
      attach(s.receiver, over(receivers.far), s.holder0, epoch);
      OK(add_holder(s.writer, over(senders.near)));
      two_versions(s, epoch);
      second = s.committed(epoch, 1);
      OK(ff_writer_cancel(s.writer));
    }
    check_holder(s, epoch, second);
  }
}

// The cable is pulled after a random number of bytes in either direction. What is complete is always whole.
void unplug(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 40; ++epoch) {
    const bool shared = epoch % 3 == 0;
    const Pair to_proxy = connect_pair(false), to_receiver = connect_pair(!shared && epoch % 2 == 0);
    const uint64_t limit = random.below(shared ? 2 * shared_bytes(7) : 3 * kSent);
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
    s.connect(s.holder0, {to_proxy.near, to_receiver.far}, epoch, shared);
    two_versions(s, epoch);
    const bool second = s.committed(epoch, 1);
    OK(ff_writer_cancel(s.writer));
    proxy.join();
    ::close(to_proxy.far);
    ::close(to_receiver.near);
    check_holder(s, epoch, second);
  }
}

// Bytes that are no frames, and frames with one bit flipped, close the connection and leave complete slots alone.
void malformed(Random& random) {
  Setup s(random);
  s.connect(1, false);
  // No two places alike, and no holes: a flipped offset in the shared file must not lead to the same bytes.
  s.tensors.memory = random.bytes(kSent + kLocal);
  const ff_segment whole{s.tensors.memory.data(), kSent + kLocal, 0, -1, 0};
  OK(ff_writer_set_segments(s.writer, &whole, 1));
  OK(ff_writer_begin(s.writer, 0, 1, 0, nullptr));
  OK(ff_writer_seal(s.writer, 0, "s", 1));
  eventually([&] { return s.committed(1, 0); });
  OK(ff_writer_cancel(s.writer));

  // Record one whole conversation for each way.
  std::vector<uint8_t> recordings[2];
  const int slot = s.own.find(1, 0);
  CHECK(slot >= 0);
  for (const bool shared : {false, true}) {
    const Pair wire = connect_pair(false);
    std::thread sender([&] {
      send_slot_over(over(wire.near, shared ? "shm" : "tcp"), s.own, static_cast<uint32_t>(slot), 1);
    });
    std::vector<uint8_t>& recorded = recordings[shared];
    recorded.resize(shared ? shared_bytes(7) : inline_bytes(7));
    for (size_t got = 0; got < recorded.size();) {
      const ssize_t part = ::recv(wire.far, recorded.data() + got, recorded.size() - got, 0);
      CHECK(part > 0);
      got += static_cast<size_t>(part);
    }
    ::close(wire.far);
    sender.join();
  }

  for (int round = 0; round < 120; ++round) {
    const bool shared = round % 2 == 1;
    std::vector<uint8_t> bad = recordings[shared];
    const bool garbage = round % 3 == 0;
    if (garbage) {
      bad = random.bytes(1 + random.below(2000));
    } else {
      bad[random.below(round % 3 == 1 ? bad.size() : 300)] ^= static_cast<uint8_t>(1 << random.below(8));
      if (random.below(3) == 0) bad.resize(random.below(bad.size()));
    }
    const Pair pair = connect_pair(false);
    uint64_t id;
    attach(s.receiver, shared ? over(pair.far, "shm", s.own.file()) : over(pair.far), s.holder0, 1, &id);
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
