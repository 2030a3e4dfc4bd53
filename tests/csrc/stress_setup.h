// One worker and its holders' agents in one process, and what the scenarios are.
#pragma once
#include "stress.h"

constexpr uint64_t kSent = 300000, kLocal = 50001, kChunk = 8192;

inline ff_arena_layout layout_of(uint64_t local) {
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
  // The holders' connections: both over TCP, one with several streams, or over a Unix socket and shared memory.
  void connect(uint64_t epoch, bool tcp) {
    if (tcp) {
      connect(holder0, Pairs(3), epoch);
    } else {
      connect(holder0, connect_pair(false), epoch, false);
    }
    connect(holder1, connect_pair(tcp), epoch, !tcp);
  }
  void connect(ArenaMemory& holder, const Pairs& pairs, uint64_t epoch) {
    attach(receiver, over(pairs.far), holder, epoch);
    OK(add_holder(writer, over(pairs.near, 1)));
  }
  void connect(ArenaMemory& holder, const Pair& pair, uint64_t epoch, bool shared) {
    const char* transport = shared ? "shm" : "tcp";
    attach(receiver, over(pair.far, transport, shared ? own.file() : -1), holder, epoch);
    OK(add_holder(writer, over(pair.near, transport)));
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

// Each is run by `stress SEED NAME...`.
void steady(Random& random);
void cancel(Random& random);
void send_slot(Random& random);
void gate(Random& random);
void unplug(Random& random);
void malformed(Random& random);
void fuzz(Random& random);
void streams_unplug(Random& random);
void streams_fuzz(Random& random);
void ucx_steady(Random& random);
void ucx_cancel(Random& random);
void ucx_unplug(Random& random);
void ucx_fuzz(Random& random);
void ucx_flood(Random& random);
void ucx_send_slot(Random& random);
