// A fuzzer for the wire format that knows its grammar: conversations of valid frames, some with fields, lengths, order
// or bytes changed and the checksums made right again, so that they get past the first check. docs/wire_format.md.
#include <algorithm>
#include <cstring>
#include <memory>

#include "stress_setup.h"

namespace {

constexpr uint64_t kEpoch = 5;

struct Header {  // written down here again, independently of the engine's sources
  uint32_t magic = 0x31524646;
  uint16_t type = 0, flags = 0;
  uint32_t rank = 7, data_crc = 0;
  uint64_t epoch = kEpoch;
  int64_t version = -1;
  uint64_t index = 0, length = 0;
  uint32_t reserved = 0, header_crc = 0;
};
static_assert(sizeof(Header) == 56, "as in docs/wire_format.md");

struct Frame {
  Header header;
  std::vector<uint8_t> data;
};

Frame frame(uint16_t type, int64_t version, std::vector<uint8_t> data, uint64_t index = 0, uint16_t flags = 0) {
  Frame out;
  out.header.type = type;
  out.header.flags = flags;
  out.header.version = version;
  out.header.index = index;
  out.header.length = data.size();
  out.header.data_crc = ff_crc32c(0, data.data(), data.size());
  out.data = std::move(data);
  return out;
}

std::vector<Frame> conversation(Random& random, int64_t version) {
  std::vector<Frame> out;
  if (random.below(2)) out.push_back(frame(1, -1, random.bytes(random.below(4097))));
  const uint64_t body[2] = {kSent, kChunk};
  const auto* at = reinterpret_cast<const uint8_t*>(body);
  out.push_back(frame(2, version, {at, at + sizeof body}, 0, 1));
  for (uint64_t i = 0; i * kChunk < kSent; ++i) {
    out.push_back(frame(3, version, random.bytes(std::min(kChunk, kSent - i * kChunk)), i));
  }
  out.push_back(frame(4, version, random.bytes(random.below(4097))));
  return out;
}

// A value near those that programs compare with.
uint64_t odd(Random& random, uint64_t now) {
  static const uint64_t values[] = {0,          1,          2,     55,        56,         57,
                                    4095,       4096,       4097,  kChunk - 1, kChunk + 1, kSent,
                                    kSent + 1,  UINT32_MAX, uint64_t{1} << 40, INT64_MAX,  UINT64_MAX};
  const uint64_t pick = random.below(sizeof values / sizeof *values + 3);
  if (pick == 0) return now + 1;
  if (pick == 1) return now - 1;
  return pick == 2 ? now ^ (uint64_t{1} << random.below(64)) : values[pick - 3];
}

void mutate(Random& random, std::vector<Frame>& frames) {
  const size_t i = random.below(frames.size());
  Header& h = frames[i].header;
  switch (random.below(12)) {
    case 0: h.type = static_cast<uint16_t>(random.below(9)); break;
    case 1: h.flags = static_cast<uint16_t>(odd(random, h.flags)); break;
    case 2: h.rank = static_cast<uint32_t>(odd(random, h.rank)); break;
    case 3: h.epoch = odd(random, h.epoch); break;
    case 4: h.version = static_cast<int64_t>(odd(random, static_cast<uint64_t>(h.version))); break;
    case 5: h.index = odd(random, h.index); break;
    case 6: h.length = odd(random, h.length); break;
    case 7: h.data_crc ^= 1u << random.below(32); break;
    case 8: frames.erase(frames.begin() + static_cast<long>(i)); break;
    case 9: frames.insert(frames.begin() + static_cast<long>(i), Frame(frames[random.below(frames.size())])); break;
    case 10: std::swap(frames[i], frames[random.below(frames.size())]); break;
    case 11: frames.resize(i); break;
  }
}

// Over shared memory: the data of CHUNKs go into the file, their offset there takes their place on the wire.
void share(Random& random, std::vector<Frame>& frames, const SharedMemory& memory) {
  uint64_t at = 0;
  for (Frame& f : frames) {
    if (f.header.type != 3) continue;
    if (at + f.data.size() > memory.bytes) at = 0;
    std::memcpy(static_cast<uint8_t*>(memory.base) + at, f.data.data(), f.data.size());
    const uint64_t offset = random.below(200) ? at : odd(random, at);
    at += f.data.size();
    const auto* bytes = reinterpret_cast<const uint8_t*>(&offset);
    f.data.assign(bytes, bytes + sizeof offset);
  }
}

std::vector<uint8_t> encode_exactly(std::vector<Frame>& frames) {
  std::vector<uint8_t> out;
  for (Frame& f : frames) {
    f.header.header_crc = ff_crc32c(0, &f.header, sizeof(Header) - 4);
    const auto* at = reinterpret_cast<const uint8_t*>(&f.header);
    out.insert(out.end(), at, at + sizeof(Header));
    out.insert(out.end(), f.data.begin(), f.data.end());
  }
  return out;
}

std::vector<uint8_t> encode(Random& random, std::vector<Frame>& frames) {
  std::vector<uint8_t> out = encode_exactly(frames);
  if (out.empty() || random.below(8) != 0) return out;
  out[random.below(out.size())] ^= static_cast<uint8_t>(1 << random.below(8));
  return out;
}

void send_all(int fd, const std::vector<uint8_t>& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t part = ::send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (part <= 0) return;  // the other side has closed: that is an answer
    sent += static_cast<size_t>(part);
  }
}

void wait_ended(ff_receiver* receiver, uint64_t id) {
  eventually([&] {
    ff_receiver_status status[8];
    size_t count;
    OK(ff_receiver_poll(receiver, status, 8, &count));
    return std::any_of(status, status + count, [&](const auto& s) { return s.connection_id == id && !s.open; });
  });
}

// Complete slots must be whole whatever came; a newest version, once there, must stay. Returns it; -1: none.
int64_t check_slots(const ArenaMemory& arena, int64_t newest) {
  int64_t found = -1;
  for (uint32_t slot = 0; slot < 2; ++slot) {
    const ff_slot_info info = arena.info(slot);
    if (info.state != FF_SLOT_COMPLETE) continue;
    CHECK(info.epoch == kEpoch);
    OK(ff_slot_verify(arena.base, slot));
    found = std::max(found, info.version);
  }
  CHECK(found >= newest);
  if (found <= newest + 1000) return found;
  for (uint32_t slot = 0; slot < 2; ++slot) OK(ff_slot_empty(arena.base, slot));  // far ahead, accepted rightly: over
  return -1;
}

void fuzz_receiver(Random& random) {
  ff_receiver* receiver;
  OK(ff_receiver_open(-1, &receiver));
  {
    ArenaMemory arena(layout_of(0));
    const SharedMemory memory(4 * kSent);
    int64_t version = 10, newest = -1;
    for (int round = 0; round < 300; ++round) {
      std::vector<Frame> frames = conversation(random, version);
      if (random.below(2)) {
        std::vector<Frame> second = conversation(random, version + 1);
        frames.insert(frames.end(), second.begin(), second.end());
      }
      for (uint64_t i = round % 10 == 0 ? 0 : 1 + random.below(3); i > 0 && !frames.empty(); --i) mutate(random, frames);
      const Pair pair = connect_pair(false);
      uint64_t id;
      const bool shared = round % 3 == 0;
      if (shared) share(random, frames, memory);
      attach(receiver, shared ? over(pair.far, "shm", memory.file()) : over(pair.far), arena, kEpoch, &id);
      send_all(pair.near, encode(random, frames));
      ::shutdown(pair.near, SHUT_WR);
      wait_ended(receiver, id);
      ::close(pair.near);
      newest = check_slots(arena, newest);
      version = std::max(version, newest) + 1;
    }
    CHECK(version > 10);
    OK(ff_receiver_close(receiver));
  }
}

// A holder that answers nonsense is lost, or has acknowledged; the writer lives on.
void fuzz_answers(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 60; ++epoch) {
    const Pair pair = connect_pair(false);
    OK(add_holder(s.writer, over(pair.near)));
    OK(ff_writer_begin(s.writer, 0, epoch, 0, nullptr));
    OK(ff_writer_seal(s.writer, 0, "s", 1));
    std::thread holder([&, take = random.below(2 * kSent)] {
      std::vector<char> buffer(1 << 16);
      for (uint64_t got = 0; got < take;) {
        const ssize_t part = ::recv(pair.far, buffer.data(), buffer.size(), got < kSent ? 0 : MSG_DONTWAIT);
        if (part <= 0) break;
        got += static_cast<uint64_t>(part);
      }
      const bool text = random.below(2) == 1;
      std::vector<Frame> answer{frame(random.below(4) ? 5 : 6, 0, random.bytes(text ? random.below(400) : 0))};
      answer[0].header.epoch = epoch;
      if (random.below(2)) mutate(random, answer);
      send_all(pair.far, encode(random, answer));
      ::shutdown(pair.far, SHUT_RDWR);
    });
    ff_writer_stats stats;
    eventually([&] {
      OK(ff_writer_stats_get(s.writer, &stats));
      return stats.holders_lost == 1;
    });
    CHECK(ff_writer_check(s.writer) != FF_OK);
    holder.join();
    OK(ff_writer_cancel(s.writer));
    ::close(pair.far);
  }
}

// The frames of one version spread over several streams, in any order there, from a thread for each; now and then one
// frame on two of them at once.
std::vector<std::vector<Frame>> spread(Random& random, const std::vector<Frame>& frames, size_t streams, bool exact) {
  std::vector<std::vector<Frame>> out(streams);
  for (const Frame& f : frames) {
    const bool chunk = f.header.type == 3;
    out[chunk || (!exact && random.below(40) == 0) ? random.below(streams) : 0].push_back(f);
    if (chunk && !exact && random.below(60) == 0) out[random.below(streams)].push_back(f);
  }
  for (size_t i = 1; i < streams; ++i) {
    for (size_t k = out[i].size(); k > 1; --k) std::swap(out[i][k - 1], out[i][random.below(k)]);
  }
  return out;
}

void fuzz_streams(Random& random) {
  ff_receiver* receiver;
  OK(ff_receiver_open(-1, &receiver));
  {
    ArenaMemory arena(layout_of(0));
    int64_t version = 10, newest = -1, completed = 0;
    for (int round = 0; round < 150; ++round) {
      const bool exact = round % 5 == 0;
      const size_t streams = 2 + random.below(4);
      const Pairs pairs(streams, false);
      std::vector<Frame> frames = conversation(random, version);
      for (uint64_t i = exact ? 0 : random.below(3); i > 0 && !frames.empty(); --i) mutate(random, frames);
      auto parts = spread(random, frames, streams, exact);
      uint64_t id;
      attach(receiver, over(pairs.far), arena, kEpoch, &id);
      std::vector<std::thread> senders;
      for (size_t i = 0; i < streams; ++i) {
        auto bytes = std::make_shared<std::vector<uint8_t>>(exact ? encode_exactly(parts[i]) : encode(random, parts[i]));
        senders.emplace_back([bytes, fd = pairs.near[i], exact] {
          send_all(fd, *bytes);
          if (!exact) ::shutdown(fd, SHUT_WR);
        });
      }
      for (auto& sender : senders) sender.join();
      uint8_t ack[sizeof(Header)];  // an honest peer waits for it
      if (exact) CHECK(::recv(pairs.near[0], ack, sizeof ack, MSG_WAITALL) == sizeof ack);
      for (const int fd : pairs.near) ::shutdown(fd, SHUT_WR);
      wait_ended(receiver, id);
      for (const int fd : pairs.near) ::close(fd);
      newest = check_slots(arena, newest);
      if (exact) CHECK(newest == version);
      completed += newest == version;
      version = std::max(version, newest) + 1;
    }
    CHECK(completed >= 30);
    OK(ff_receiver_close(receiver));
  }
}

}  // namespace

void streams_fuzz(Random& random) { fuzz_streams(random); }

void fuzz(Random& random) {
  fuzz_receiver(random);
  fuzz_answers(random);
}
