// One complete slot (and the init journal) to a peer's receiver, in the calling thread.
#include <errno.h>
#include <poll.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "sender/check_ahead.h"
#include "transport/given_connection.h"
#include "transport/version_frames.h"

namespace ff {
namespace {

constexpr size_t kMostChecks = 4;  // threads: together faster than any network

// The peer's answer: an ACK of this version, or its reason.
void await_acknowledgement(Transport& transport, const VersionId& id, const Deadline& end) {
  uint8_t inbox[sizeof(FrameHeader) + kMaxRejectText];
  FrameHeader frame{};
  size_t got = 0, need = sizeof frame;
  for (;;) {
    got += transport.receive_some(inbox + got, sizeof inbox - got);
    if (got >= sizeof frame) {
      std::memcpy(&frame, inbox, sizeof frame);
      check_frame(frame);
      if (frame.length > kMaxRejectText) {
        raise(FF_EPROTO, "answer of %llu bytes", static_cast<unsigned long long>(frame.length));
      }
      need = sizeof frame + frame.length;
      if (got >= need) break;
    }
    if (end.passed()) {
      raise(FF_ETIMEOUT, "slot of rank %u was sent, but not acknowledged before the deadline", id.rank);
    }
    pollfd wait{transport.fd(), POLLIN, 0};
    if (::poll(&wait, 1, end.poll_ms(100)) < 0 && errno != EINTR) raise_errno(errno, "poll");
  }
  if (frame.type == static_cast<uint16_t>(FrameType::kReject)) {
    raise(FF_EPROTO, "the receiver refused: %.*s", static_cast<int>(frame.length),
          reinterpret_cast<const char*>(inbox + sizeof frame));
  }
  if (frame.type != static_cast<uint16_t>(FrameType::kAck) || frame.epoch != id.epoch || frame.version != id.version ||
      frame.rank != id.rank) {
    raise(FF_EPROTO, "%s frame of (%llu, %lld) instead of the acknowledgement of (%llu, %lld)", name_of(frame.type),
          static_cast<unsigned long long>(frame.epoch), static_cast<long long>(frame.version),
          static_cast<unsigned long long>(id.epoch), static_cast<long long>(id.version));
  }
}

// A send failed: if the peer said why it closed, that is the error.
void explain(Transport& transport, const VersionId& id) {
  try {
    await_acknowledgement(transport, id, Deadline::after_ms(0));
  } catch (const Error& error) {
    if (error.code() == FF_EPROTO) throw;
  }
}

// Everything of one version.
void send_version(Transport& transport, const ArenaView& arena, const SlotView& slot, const SlotRecord& record,
                  const Patience& patience) {
  const VersionId id{arena.layout().rank, record.epoch, record.version};
  const bool checksummed = (record.flags & kChecksummed) != 0;
  const auto journal = JournalView(arena).get();
  if (journal.bytes > 0) send_frame(transport, journal_frame(id, journal.data, journal.bytes), journal.data, patience);
  const BeginBody body = begin_body(arena);
  send_frame(transport, begin_frame(id, body, checksummed), &body, patience);
  const uint32_t chunks = arena.geometry().sent_chunks();
  CheckAhead checked(slot, record, chunks, std::min<size_t>(transport.streams(), kMostChecks));
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    checked.await(chunk);
    send_frame(transport, chunk_frame(id, arena, slot, chunk, checksummed),
               slot.payload() + arena.geometry().chunk(chunk).offset, patience);
  }
  send_frame(transport, blob_frame(id, record.blob_bytes, record.blob_crc), slot.blob(), patience);
}

struct Order {  // what to send
  uint32_t slot;
  uint64_t epoch;
  int64_t timeout_ms;
};

void send_slot(Transport& transport, const ArenaView& arena, const Order& order) {
  const Patience patience{order.timeout_ms, Deadline::after_ms(order.timeout_ms)};
  const SlotView slot(arena, order.slot);
  const SlotRecord record = slot.complete_record();
  if (record.epoch != order.epoch) {
    raise(FF_EINVAL, "slot %u of rank %u is of epoch %llu, asked for was %llu: re-stamp it first", order.slot,
          arena.layout().rank, static_cast<unsigned long long>(record.epoch),
          static_cast<unsigned long long>(order.epoch));
  }
  slot.verify_head(record);
  const VersionId id{arena.layout().rank, order.epoch, record.version};
  transport.connect();
  try {
    send_version(transport, arena, slot, record, patience);
  } catch (const Error& error) {
    if (error.code() == FF_EIO) explain(transport, id);
    throw;
  }
  await_acknowledgement(transport, id, patience.end);
}

}  // namespace
}  // namespace ff

extern "C" int ff_send_slot(const ff_connection* connection, const void* arena, uint64_t arena_bytes, uint32_t slot,
                            uint64_t epoch, int64_t timeout_ms) {
  ff::GivenConnection given(connection);  // taken over in every case
  return ff::guarded([&] {
    const ff::ArenaView view(const_cast<void*>(arena), arena_bytes);
    // Gone, with everything of its own that reads the slot, when this returns.
    const auto transport = given.sender(arena, timeout_ms);
    ff::send_slot(*transport, view, {slot, epoch, timeout_ms});
    return FF_OK;
  });
}
