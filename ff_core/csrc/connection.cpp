// One replication connection's receiving side: the conversation of docs/wire_format.md.
#include <algorithm>
#include <cstring>

#include "crc32c.h"
#include "receiver.h"

namespace ff {
namespace {

using ull = unsigned long long;

}  // namespace

Connection::Connection(uint64_t id, std::unique_ptr<Transport> transport, void* arena, uint64_t arena_bytes,
                       uint64_t epoch, const Bell& bell)
    : id_(id),
      arena_(arena, arena_bytes),
      epoch_(epoch),
      bell_(bell),
      transport_(std::move(transport)) {
  thread_ = start_thread("ff-recv", [this] { run(); });
}

Connection::~Connection() {
  stop();
}

void Connection::interrupt() {
  if (!finished_) stopping_.store(true);  // what it ended with before stays its reason
  transport_->shutdown();
}

void Connection::stop() {
  interrupt();
  if (thread_.joinable()) thread_.join();
}

ff_receiver_status Connection::status() const {
  ff_receiver_status out{};
  const bool finished = finished_.load();
  out.connection_id = id_;
  out.last_stamp = last_stamp_;
  out.bytes = bytes_;
  out.journals = journals_;
  out.open = !finished;
  if (finished) {
    out.error = error_;
    message_.copy(out.message, sizeof out.message - 1);
  }
  return out;
}

void Connection::run() noexcept {
  try {
    serve();
    if (stopping_) raise(FF_ECANCELLED, "closed here");
    if (arriving_ != nullptr) {
      raise(FF_EIO, "the peer closed in the middle of version (%llu, %lld)", ull{epoch_},
            static_cast<long long>(arriving_->version));
    }
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    error_ = stopping_ ? int{FF_ECANCELLED} : known != nullptr ? known->code() : int{FF_EINTERNAL};
    message_ = stopping_ ? "closed here" : error.what();
    try {
      if (!stopping_ && error_ != FF_EIO) reply(FrameType::kReject, -1, message_);
    } catch (const std::exception&) {  // the peer is gone: it cannot be told why
    }
  }
  transport_->release();
  transport_->shutdown();
  finished_.store(true);
  bell_.ring();
}

void Connection::serve() {
  FrameHeader frame;
  while (transport_->next(&frame)) {
    check_frame(frame);
    if (frame.epoch != epoch_)
      raise(FF_EPROTO, "%s frame of epoch %llu on a connection of epoch %llu", name_of(frame.type), ull{frame.epoch},
            ull{epoch_});
    if (frame.rank != arena_.layout().rank)
      raise(FF_EPROTO, "%s frame of rank %u for the arena of rank %u", name_of(frame.type), frame.rank,
            arena_.layout().rank);
    switch (static_cast<FrameType>(frame.type)) {
      case FrameType::kJournal:
        on_journal(frame);
        break;
      case FrameType::kBegin:
        on_begin(frame);
        break;
      case FrameType::kChunk:
        on_chunk(frame);
        break;
      case FrameType::kBlob:
        on_blob(frame);
        break;
      default:
        raise(FF_EPROTO, "unexpected %s frame", name_of(frame.type));
    }
    bytes_ += sizeof frame + frame.length;
  }
}

void Connection::expect_crc(const FrameHeader& frame, uint32_t crc) const {
  if (crc == frame.data_crc) return;
  raise(FF_EPROTO, "%s %llu of version (%llu, %lld): checksum is %#x, expected %#x", name_of(frame.type),
        ull{frame.index}, ull{frame.epoch}, static_cast<long long>(frame.version), crc, frame.data_crc);
}

void Connection::on_journal(const FrameHeader& frame) {
  if (frame.length > arena_.layout().journal_capacity) {
    raise(FF_EPROTO, "JOURNAL of %llu bytes, the arena holds %llu", ull{frame.length},
          ull{arena_.layout().journal_capacity});
  }
  std::vector<uint8_t> data(frame.length);  // aside first: a bad one must not replace a good one
  expect_crc(frame, transport_->take(data.data(), data.size(), true));
  JournalView(arena_).set(data.data(), data.size());
  ++journals_;
  bell_.ring();
}

uint32_t Connection::choose_slot(uint64_t stamp) const {
  // Anything not complete is free; among complete ones the oldest goes, and never the only one.
  uint32_t oldest = 0, complete = 0, free_slot = UINT32_MAX;
  uint64_t oldest_stamp = UINT64_MAX, newest_stamp = 0;
  for (uint32_t slot = 0; slot < arena_.layout().slots; ++slot) {
    SlotRecord record;
    try {
      record = SlotView(arena_, slot).record();
    } catch (const Error&) {  // damaged: as good as empty
    }
    if (record.state != FF_SLOT_COMPLETE) {
      if (free_slot == UINT32_MAX) free_slot = slot;
      continue;
    }
    ++complete;
    const uint64_t held = make_stamp(record.epoch, record.version);
    if (held < oldest_stamp) {
      oldest_stamp = held;
      oldest = slot;
    }
    newest_stamp = std::max(newest_stamp, held);
  }
  if (complete > 0 && stamp < newest_stamp) {
    raise(FF_EPROTO, "BEGIN of (%llu, %lld), but (%llu, %lld) is here already", ull{stamp >> 40},
          static_cast<long long>(stamp & ((uint64_t{1} << 40) - 1)) - 1, ull{newest_stamp >> 40},
          static_cast<long long>(newest_stamp & ((uint64_t{1} << 40) - 1)) - 1);
  }
  return free_slot != UINT32_MAX ? free_slot : oldest;
}

void Connection::on_begin(const FrameHeader& frame) {
  BeginBody body;
  if (frame.length != sizeof body)
    raise(FF_EPROTO, "BEGIN of %llu bytes, expected %zu", ull{frame.length}, sizeof body);
  if (frame.flags & ~kChecksummed) raise(FF_EPROTO, "BEGIN has flags %#x, known is %#x", frame.flags, kChecksummed);
  expect_crc(frame, transport_->take(&body, sizeof body, true));
  const ff_arena_layout& layout = arena_.layout();
  if (body.sent_bytes != layout.sent_bytes || body.chunk_bytes != layout.chunk_bytes) {
    raise(FF_EPROTO, "BEGIN says %llu bytes in chunks of %llu, the arena of rank %u has %llu in chunks of %llu",
          ull{body.sent_bytes}, ull{body.chunk_bytes}, layout.rank, ull{layout.sent_bytes}, ull{layout.chunk_bytes});
  }
  if (arriving_ != nullptr) {
    raise(FF_EPROTO, "BEGIN of version %lld before version %lld was complete", static_cast<long long>(frame.version),
          static_cast<long long>(arriving_->version));
  }
  check_stamp(frame.epoch, frame.version, FF_EPROTO);
  const uint32_t slot = choose_slot(make_stamp(frame.epoch, frame.version));
  SlotView(arena_, slot).begin(frame.epoch, frame.version);
  arriving_ = std::make_unique<Arriving>(Arriving{slot, frame.version, (frame.flags & kChecksummed) != 0, 0});
}

void Connection::check_version(const FrameHeader& frame) const {
  if (arriving_ == nullptr) raise(FF_EPROTO, "%s frame without BEGIN", name_of(frame.type));
  if (frame.version != arriving_->version) {
    raise(FF_EPROTO, "%s frame of version %lld within version %lld", name_of(frame.type),
          static_cast<long long>(frame.version), static_cast<long long>(arriving_->version));
  }
}

void Connection::on_chunk(const FrameHeader& frame) {
  check_version(frame);
  if (frame.index != arriving_->next_chunk || frame.index >= arena_.geometry().sent_chunks()) {
    raise(FF_EPROTO, "CHUNK %llu, expected %u of %u", ull{frame.index}, arriving_->next_chunk,
          arena_.geometry().sent_chunks());
  }
  const Range range = arena_.geometry().chunk(arriving_->next_chunk);
  if (frame.length != range.bytes)
    raise(FF_EPROTO, "CHUNK %llu has %llu bytes, expected %llu", ull{frame.index}, ull{frame.length}, ull{range.bytes});
  const SlotView slot(arena_, arriving_->slot);
  const uint32_t crc = transport_->take(slot.payload() + range.offset, range.bytes, arriving_->checksummed);
  expect_crc(frame, crc);
  slot.table()[frame.index] = crc;
  ++arriving_->next_chunk;
}

void Connection::on_blob(const FrameHeader& frame) {
  check_version(frame);
  if (arriving_->next_chunk != arena_.geometry().sent_chunks()) {
    raise(FF_EPROTO, "BLOB after %u of %u chunks", arriving_->next_chunk, arena_.geometry().sent_chunks());
  }
  if (frame.length > arena_.layout().blob_capacity) {
    raise(FF_EPROTO, "BLOB of %llu bytes, the arena holds %llu", ull{frame.length}, ull{arena_.layout().blob_capacity});
  }
  SlotView slot(arena_, arriving_->slot);
  const uint32_t crc = transport_->take(slot.blob(), frame.length, true);
  expect_crc(frame, crc);
  slot.finish(arena_.layout().sent_bytes, arriving_->checksummed, frame.length, crc);
  arriving_.reset();
  last_stamp_ = make_stamp(frame.epoch, frame.version);
  reply(FrameType::kAck, frame.version, "");
  bell_.ring();
}

void Connection::reply(FrameType type, int64_t version, const std::string& text) {
  FrameHeader frame = make_frame(type, arena_.layout().rank, epoch_, version);
  frame.length = std::min<uint64_t>(text.size(), kMaxRejectText);
  frame.data_crc = crc32c(0, text.data(), frame.length);
  send_frame(*transport_, frame, text.data(), {5000, Deadline::never()});
}

}  // namespace ff
