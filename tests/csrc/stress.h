// Small tools of the stress program: checks, seeded randomness, live tensors, arenas in memory files.
#pragma once
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "ff_engine.h"

#define CHECK(condition)                                                                                             \
  do {                                                                                                               \
    if (!(condition)) {                                                                                              \
      std::fprintf(stderr, "%s:%d: %s is false; last error: %s\n", __FILE__, __LINE__, #condition, ff_last_error()); \
      std::abort();                                                                                                  \
    }                                                                                                                \
  } while (0)

#define OK(call)                                                                                          \
  do {                                                                                                    \
    const int code_ = (call);                                                                             \
    if (code_ != FF_OK) {                                                                                 \
      std::fprintf(stderr, "%s:%d: %s gave %d: %s\n", __FILE__, __LINE__, #call, code_, ff_last_error()); \
      std::abort();                                                                                       \
    }                                                                                                     \
  } while (0)

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t below(uint64_t limit) { return engine_() % limit; }
  std::vector<uint8_t> bytes(size_t count) {
    std::vector<uint8_t> out(count);
    for (size_t at = 0; at < count; at += sizeof(uint64_t)) {
      const uint64_t word = engine_();
      std::memcpy(out.data() + at, &word, std::min(sizeof word, count - at));
    }
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

inline void sleep_us(uint64_t us) {
  std::this_thread::sleep_for(std::chrono::microseconds(us));
}

// Waits for `condition`; a hang is a failure.
template <class Condition>
void eventually(Condition condition) {
  for (int i = 0; i < 60000; ++i) {
    if (condition()) return;
    sleep_us(1000);
  }
  std::fprintf(stderr, "gave up waiting; last error: %s\n", ff_last_error());
  std::abort();
}

// A memory file as agents make them, mapped.
class SharedMemory {
 public:
  explicit SharedMemory(uint64_t size) : bytes(size), fd_(::memfd_create("stress", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    CHECK(bytes > 0 && fd_ >= 0 && ::ftruncate(fd_, static_cast<off_t>(bytes)) == 0);
    CHECK(::fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    OK(ff_memory_map(fd_, bytes, &base));
  }
  ~SharedMemory() {
    ff_memory_unmap(base, bytes);
    ::close(fd_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  int file() const { return ::dup(fd_); }  // to be given away

  const uint64_t bytes;
  void* base = nullptr;

 private:
  const int fd_;
};

class ArenaMemory : public SharedMemory {
 public:
  explicit ArenaMemory(const ff_arena_layout& layout) : SharedMemory(ff_arena_bytes(&layout)) {
    OK(ff_arena_format(base, bytes, &layout));
  }

  ff_slot_info info(uint32_t slot) const {
    ff_slot_info out;
    OK(ff_slot_info_get(base, slot, &out));
    return out;
  }
  int find(uint64_t epoch, int64_t version) const {
    for (uint32_t slot = 0; slot < 2; ++slot) {
      const ff_slot_info i = info(slot);
      if (i.state == FF_SLOT_COMPLETE && i.epoch == epoch && i.version == version) return static_cast<int>(slot);
    }
    return -1;
  }
};

// Tensors in one block, cut at random places, with holes in the payload between some of them.
class Tensors {
 public:
  Tensors(Random& random, uint64_t payload_bytes, size_t pieces) : memory(payload_bytes) {
    std::vector<uint64_t> cuts = {0, payload_bytes};
    for (size_t i = 0; i < pieces; ++i) cuts.push_back(random.below(payload_bytes));
    std::sort(cuts.begin(), cuts.end());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i] == cuts[i + 1] || random.below(8) == 0) continue;
      segments.push_back({memory.data() + cuts[i], cuts[i + 1] - cuts[i], cuts[i], -1, 0});
    }
  }
  // Plain stores: a sanitizer sees it when somebody still reads.
  void step(uint8_t value) { std::memset(memory.data(), value, memory.size()); }
  bool all_equal(uint8_t value) const {
    for (const auto& s : segments) {
      const auto* p = static_cast<const uint8_t*>(s.ptr);
      for (uint64_t i = 0; i < s.bytes; ++i) {
        if (p[i] != value) return false;
      }
    }
    return true;
  }
  // Restores `slot` over the tensors' sent part and says whether every byte is `value`.
  bool restored_equals(const ArenaMemory& arena, int slot, uint64_t sent_bytes, uint8_t value) {
    std::vector<ff_segment> sent;
    for (const auto& s : segments) {
      if (s.offset + s.bytes <= sent_bytes) sent.push_back(s);
    }
    OK(ff_slot_restore(arena.base, static_cast<uint32_t>(slot), sent.data(), sent.size()));
    for (const auto& s : sent) {
      const auto* p = static_cast<const uint8_t*>(s.ptr);
      for (uint64_t i = 0; i < s.bytes; ++i) {
        if (p[i] != value) return false;
      }
    }
    return true;
  }

  std::vector<uint8_t> memory;
  std::vector<ff_segment> segments;
};

// A connected pair: AF_UNIX, or TCP over loopback.
struct Pair {
  int near, far;
};
inline Pair connect_pair(bool tcp) {
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

// A connection of several streams.
struct Pairs {
  explicit Pairs(size_t count, bool tcp = true) {
    for (size_t i = 0; i < count; ++i) {
      const Pair pair = connect_pair(tcp);
      near.push_back(pair.near);
      far.push_back(pair.far);
    }
  }
  std::vector<int> near, far;
};

// Connections as the engine takes them; their sockets are given away. file: shared memory, the sender's file, out of which
// several threads copy.
inline ff_connection over(const std::vector<int>& sockets, uint32_t fewer = 0) {
  return {sockets.data(), sockets.size(), "tcp", -1, 0, fewer};
}
inline ff_connection over(const int& socket, const char* transport = "tcp", int file = -1) {
  return {&socket, 1, transport, file, file >= 0 ? 3u : 0u, 0};
}
inline int add_holder(ff_writer* writer, const ff_connection& connection) {
  return ff_writer_add_holder(writer, &connection, 60000);
}
inline void attach(ff_receiver* receiver, const ff_connection& connection, const ArenaMemory& arena, uint64_t epoch,
                   uint64_t* id = nullptr) {
  OK(ff_receiver_attach(receiver, &connection, arena.base, arena.bytes, epoch, id));
}
inline int send_slot_over(const ff_connection& connection, const ArenaMemory& from, uint32_t slot, uint64_t epoch) {
  return ff_send_slot(&connection, from.base, from.bytes, slot, epoch, 60000);
}

constexpr uint64_t kStampVersions = uint64_t{1} << 40;
inline uint64_t stamp_of(uint64_t epoch, int64_t version) {
  return epoch << 40 | static_cast<uint64_t>(version + 1);
}
