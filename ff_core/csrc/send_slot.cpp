// One complete slot (and the init journal) to a peer's receiver, in the calling thread.
#include <errno.h>
#include <poll.h>

#include "crc32c.h"
#include "error.h"
#include "slot.h"
#include "wire.h"

namespace ff {
namespace {

// The peer's answer: an ACK of this version, or its reason.
void await_acknowledgement(Stream& stream, const FrameHeader& blob, const Deadline& end) {
  uint8_t inbox[sizeof(FrameHeader) + kMaxRejectText];
  FrameHeader frame{};
  for (size_t got = 0, need = sizeof frame; got < need;) {
    if (end.passed())
      raise(FF_ETIMEOUT, "slot of rank %u was sent, but not acknowledged before the deadline", blob.rank);
    pollfd wait{stream.fd(), POLLIN, 0};
    if (::poll(&wait, 1, end.poll_ms(100)) < 0 && errno != EINTR) raise_errno(errno, "poll");
    got += stream.receive_some(inbox + got, need - got);
    if (got < sizeof frame) continue;
    __builtin_memcpy(&frame, inbox, sizeof frame);
    check_frame(frame);
    if (frame.length > kMaxRejectText)
      raise(FF_EPROTO, "answer of %llu bytes", static_cast<unsigned long long>(frame.length));
    need = sizeof frame + frame.length;
  }
  if (frame.type == static_cast<uint16_t>(FrameType::kReject)) {
    raise(FF_EPROTO, "the receiver refused: %.*s", static_cast<int>(frame.length),
          reinterpret_cast<const char*>(inbox + sizeof frame));
  }
  if (frame.type != static_cast<uint16_t>(FrameType::kAck) || frame.epoch != blob.epoch ||
      frame.version != blob.version || frame.rank != blob.rank) {
    raise(FF_EPROTO, "%s frame of (%llu, %lld) instead of the acknowledgement of (%llu, %lld)", name_of(frame.type),
          static_cast<unsigned long long>(frame.epoch), static_cast<long long>(frame.version),
          static_cast<unsigned long long>(blob.epoch), static_cast<long long>(blob.version));
  }
}

void send_slot(UniqueFd fd, const ArenaView& arena, uint32_t index, uint64_t epoch, int64_t timeout_ms) {
  const Patience patience{timeout_ms, Deadline::after_ms(timeout_ms)};
  const SlotView slot(arena, index);
  const SlotRecord record = slot.complete_record();
  if (record.epoch != epoch) {
    raise(FF_EINVAL, "slot %u of rank %u is of epoch %llu, asked for was %llu: re-stamp it first", index,
          arena.layout().rank, static_cast<unsigned long long>(record.epoch), static_cast<unsigned long long>(epoch));
  }
  slot.verify_head(record);
  const auto journal = JournalView(arena).get();
  const uint32_t rank = arena.layout().rank;
  Stream stream(std::move(fd));

  if (journal.bytes > 0) {
    FrameHeader frame = make_frame(FrameType::kJournal, rank, epoch, -1);
    frame.length = journal.bytes;
    frame.data_crc = crc32c(0, journal.data, journal.bytes);
    send_frame(stream, frame, journal.data, patience);
  }
  const BeginBody body{arena.layout().sent_bytes, arena.layout().chunk_bytes};
  FrameHeader begin = make_frame(FrameType::kBegin, rank, epoch, record.version);
  begin.flags = static_cast<uint16_t>(record.flags & kChecksummed);
  begin.length = sizeof body;
  begin.data_crc = crc32c(0, &body, sizeof body);
  send_frame(stream, begin, &body, patience);
  for (uint32_t chunk = 0; chunk < arena.geometry().sent_chunks(); ++chunk) {
    slot.verify_chunk(record, chunk);  // here, not only there: a damaged slot is this side's to report
    const Range range = arena.geometry().chunk(chunk);
    FrameHeader frame = make_frame(FrameType::kChunk, rank, epoch, record.version);
    frame.index = chunk;
    frame.length = range.bytes;
    frame.data_crc = (record.flags & kChecksummed) ? slot.table()[chunk] : 0;
    send_frame(stream, frame, slot.payload() + range.offset, patience);
  }
  FrameHeader blob = make_frame(FrameType::kBlob, rank, epoch, record.version);
  blob.length = record.blob_bytes;
  blob.data_crc = record.blob_crc;
  send_frame(stream, blob, slot.blob(), patience);
  await_acknowledgement(stream, blob, patience.end);
}

}  // namespace
}  // namespace ff

extern "C" int ff_send_slot(int fd, const void* arena, uint64_t arena_bytes, uint32_t slot, uint64_t epoch,
                            int64_t timeout_ms) {
  return ff::guarded([&] {
    ff::UniqueFd owned(fd);
    const ff::ArenaView view(const_cast<void*>(arena), arena_bytes);
    ff::send_slot(std::move(owned), view, slot, epoch, timeout_ms);
    return FF_OK;
  });
}
