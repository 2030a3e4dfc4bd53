// One replication connection's receiving side: the conversation of docs/wire_format.md.
#include <algorithm>
#include <cstring>

#include "checksum/crc32c.h"
#include "receiver/receiver.h"

namespace ff {
namespace {

using ull = unsigned long long;

}  // namespace

Connection::Connection(uint64_t id, Streams streams, size_t copiers, void* arena, uint64_t arena_bytes, uint64_t epoch,
                       const Bell& bell)
    : id_(id),
      arena_(arena, arena_bytes),
      epoch_(epoch),
      bell_(bell),
      streams_(std::move(streams)),
      copiers_(streams_.size() == 1 ? copiers : 1),
      turns_(streams_.size()),
      arrival_(arena_.geometry(), epoch, streams_.size()) {
  try {
    for (size_t number = 1; number < std::max(streams_.size(), copiers_); ++number) {
      const std::string name = "ff-recv-" + std::to_string(number);
      const size_t stream = shares_stream() ? 0 : number;
      further_.push_back(start_thread(name.c_str(), [this, stream] { run_further(stream); }));
    }
    thread_ = start_thread("ff-recv", [this] { run(); });
  } catch (...) {
    hang_up();
    join_further();
    throw;
  }
}

Connection::~Connection() {
  stop();
}

void Connection::interrupt() {
  set_reason(FF_ECANCELLED, "closed here");  // what it ended with before stays its reason
  hang_up();
}

void Connection::stop() {
  interrupt();
  if (thread_.joinable()) thread_.join();
}

void Connection::hang_up() noexcept {
  arrival_.stop();
  for (auto& transport : streams_) transport->shutdown();
}

void Connection::join_further() {
  for (auto& thread : further_) thread.join();
}

bool Connection::set_reason(int error, std::string message) {
  const std::lock_guard<std::mutex> lock(reason_mutex_);
  if (concluded_) return false;
  concluded_ = true;
  error_ = error;
  message_ = std::move(message);
  return true;
}

bool Connection::conclude(size_t stream, const std::exception& error) noexcept {
  const auto* known = dynamic_cast<const Error*>(&error);
  const int code = known != nullptr ? known->code() : int{FF_EINTERNAL};
  const std::string text = stream > 0 ? "stream " + std::to_string(stream) + ": " + error.what() : error.what();
  if (!set_reason(code, text)) return false;
  try {
    if (code != FF_EIO) reply(FrameType::kReject, -1, text);
  } catch (const std::exception&) {  // the peer is gone: it cannot be told why
  }
  return true;
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
    serve(0);
    set_reason(FF_OK, "");
  } catch (const std::exception& error) {
    conclude(0, error);
  }
  arrival_.stop();
  for (size_t stream = 1; stream < streams_.size(); ++stream) streams_[stream]->shutdown();
  if (shares_stream()) streams_[0]->shutdown();  // the others wait on it as well
  join_further();
  streams_[0]->release();
  streams_[0]->shutdown();
  finished_.store(true);
  bell_.ring();
}

void Connection::run_further(size_t stream) noexcept {
  try {
    serve(stream);
  } catch (const std::exception& error) {
    if (conclude(stream, error)) hang_up();  // else whoever was first does, when the peer has been told
  }
}

void Connection::serve(size_t stream) {
  while (serve_frame(stream)) {
  }
  arrival_.stream_ended(stream);
}

bool Connection::serve_frame(size_t stream) {
  Turn turn(turns_[stream]);
  if (failed_) raise(FF_EIO, "the connection is ending");
  try {
    return serve_frame(stream, turn);
  } catch (const std::exception& error) {
    if (!shares_stream()) throw;
    const bool first = conclude(stream, error);
    failed_ = true;  // before the next one has the turn: nothing behind a bad frame means anything
    if (first) hang_up();
    throw;
  }
}

bool Connection::serve_frame(size_t stream, Turn& turn) {
  FrameHeader frame;
  if (!streams_[stream]->next(&frame)) return false;
  check_frame(frame);
  check_addressee(frame);
  const auto type = static_cast<FrameType>(frame.type);
  if (type == FrameType::kChunk) {
    on_chunk(frame, stream, turn);
    return true;
  }
  if (stream > 0) {
    raise(FF_EPROTO, "unexpected %s frame on a further stream", name_of(frame.type));
  }
  if (type == FrameType::kJournal) {
    on_journal(frame);
  } else if (type == FrameType::kBegin) {
    on_begin(frame);
  } else if (type == FrameType::kBlob) {
    on_blob(frame);
  } else {
    raise(FF_EPROTO, "unexpected %s frame", name_of(frame.type));
  }
  bytes_ += sizeof frame + frame.length;
  return true;
}

void Connection::check_addressee(const FrameHeader& frame) const {
  if (frame.epoch != epoch_)
    raise(FF_EPROTO, "%s frame of epoch %llu on a connection of epoch %llu", name_of(frame.type), ull{frame.epoch},
          ull{epoch_});
  if (frame.rank != arena_.layout().rank)
    raise(FF_EPROTO, "%s frame of rank %u for the arena of rank %u", name_of(frame.type), frame.rank,
          arena_.layout().rank);
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
  expect_crc(frame, streams_[0]->take(data.data(), data.size(), true));
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
  expect_crc(frame, streams_[0]->take(&body, sizeof body, true));
  const ff_arena_layout& layout = arena_.layout();
  if (body.sent_bytes != layout.sent_bytes || body.chunk_bytes != layout.chunk_bytes) {
    raise(FF_EPROTO, "BEGIN says %llu bytes in chunks of %llu, the arena of rank %u has %llu in chunks of %llu",
          ull{body.sent_bytes}, ull{body.chunk_bytes}, layout.rank, ull{layout.sent_bytes}, ull{layout.chunk_bytes});
  }
  arrival_.expect_none(frame);
  check_stamp(frame.epoch, frame.version, FF_EPROTO);
  const uint32_t slot = choose_slot(make_stamp(frame.epoch, frame.version));
  SlotView(arena_, slot).begin(frame.epoch, frame.version);
  arrival_.begin({slot, frame.version, (frame.flags & kChecksummed) != 0});
}

void Connection::on_chunk(const FrameHeader& frame, size_t stream, Turn& turn) {
  const Arrival::Version version = arrival_.claim(frame, stream);
  const Range range = arena_.geometry().chunk(static_cast<uint32_t>(frame.index));
  const SlotView slot(arena_, version.slot);
  uint8_t* const to = slot.payload() + range.offset;
  uint32_t crc = 0;
  if (const uint8_t* lent = streams_[stream]->lend(range.bytes)) {
    turn.unlock();
    if (version.checksummed) {
      crc = copy_crc32c_of_shared(0, to, lent, range.bytes);
      publish_stores();
    } else {
      std::memcpy(to, lent, range.bytes);
    }
  } else {
    crc = streams_[stream]->take(to, range.bytes, version.checksummed);
  }
  expect_crc(frame, crc);
  slot.table()[frame.index] = crc;
  bytes_ += sizeof frame + frame.length;  // first: another thread may acknowledge the version now
  arrival_.landed();
}

void Connection::on_blob(const FrameHeader& frame) {
  const Arrival::Version version = arrival_.await_chunks(frame);
  if (frame.length > arena_.layout().blob_capacity) {
    raise(FF_EPROTO, "BLOB of %llu bytes, the arena holds %llu", ull{frame.length}, ull{arena_.layout().blob_capacity});
  }
  SlotView slot(arena_, version.slot);
  const uint32_t crc = streams_[0]->take(slot.blob(), frame.length, true);
  expect_crc(frame, crc);
  slot.finish(arena_.layout().sent_bytes, version.checksummed, frame.length, crc);
  arrival_.end();
  last_stamp_ = make_stamp(frame.epoch, frame.version);
  reply(FrameType::kAck, frame.version, "");
  bell_.ring();
}

void Connection::reply(FrameType type, int64_t version, const std::string& text) {
  FrameHeader frame = make_frame(type, arena_.layout().rank, epoch_, version);
  frame.length = std::min<uint64_t>(text.size(), kMaxRejectText);
  frame.data_crc = crc32c(0, text.data(), frame.length);
  const std::lock_guard<std::mutex> lock(answer_mutex_);
  send_frame(*streams_[0], frame, text.data(), {5000, Deadline::never()});
}

}  // namespace ff
