#include "transport/striped.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "base/thread.h"
#include "slots/slot.h"

namespace ff {
namespace {

constexpr int kReasonMs = 1000;  // how long a failed stream waits for the peer's reason on stream 0

}  // namespace

StripedSender::StripedSender(std::vector<UniqueFd> sockets, bool fewer)
    : carrying_(sockets.size()), tuner_(sockets.size(), !fewer) {
  for (auto& socket : sockets) streams_.push_back(std::make_unique<Strand>(std::move(socket)));
  events_ = any_readable({streams_[0]->socket.fd(), failed_.fd()});
  try {
    for (size_t number = 0; number < streams_.size(); ++number) {
      const std::string name = "ff-send-" + std::to_string(number);
      streams_[number]->thread = start_thread(name.c_str(), [this, number] { run(number); });
    }
  } catch (...) {
    release();
    throw;
  }
}

void StripedSender::start(const FrameHeader& header, const Patience& patience) {
  chunk_ = header.type == static_cast<uint16_t>(FrameType::kChunk) && header.length > 0;
  first_ = true;
  header_ = header;
  if (chunk_) return;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    await(lock, [this] { return idle(); }, name_of(header.type), patience);
  }
  if (header.type == static_cast<uint16_t>(FrameType::kBegin)) begin_version(header);
  streams_[0]->socket.start(header, patience);
  if (header.type == static_cast<uint16_t>(FrameType::kBlob)) blob_sent_ns_ = monotonic_ns();
}

void StripedSender::begin_version(const FrameHeader& begin) {  // nobody uses the sockets now
  end_measurement();  // its acknowledgement has not come: so far it may count
  for (auto& stream : streams_) stream->socket.expect_version((begin.flags & kChecksummed) != 0);
  carrying_ = tuner_.streams();
  measured_bytes_ = 0;
  held_back_ = false;
  const std::lock_guard<std::mutex> lock(mutex_);
  busy_ns_ = 0;
}

void StripedSender::end_measurement() {
  if (blob_sent_ns_ == 0) return;
  const int64_t acknowledged_after = monotonic_ns() - std::exchange(blob_sent_ns_, 0);
  if (held_back_) {
    tuner_.held_back();
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  tuner_.sent(measured_bytes_, busy_ns_ + acknowledged_after);
}

void StripedSender::data(const void* piece, uint64_t bytes, const Patience& patience) {
  if (!chunk_) {
    streams_[0]->socket.data(piece, bytes, patience);
    return;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  size_t number = last_;
  const auto has_room = [&] {
    if (first_) number = least_busy();
    return !streams_[number]->waiting;
  };
  await(lock, has_room, "CHUNK", patience);
  last_ = number;
  Strand& stream = *streams_[number];
  stream.waiting = Piece{header_, first_, piece, bytes, patience};
  if (pending_++ == 0) busy_since_ = monotonic_ns();
  measured_bytes_ += bytes;
  if (bytes < header_.length) held_back_ = true;
  stream.work.notify_one();
  first_ = false;
}

size_t StripedSender::least_busy() const {
  // Among equals the one after the last, so that all of them keep moving.
  const size_t streams = carrying_;
  size_t best = (last_ + 1) % streams;
  for (size_t step = 2; step <= streams; ++step) {
    const size_t number = (last_ + step) % streams;
    if (streams_[number]->pending() < streams_[best]->pending()) best = number;
  }
  return best;
}

template <class Ready>
void StripedSender::await(std::unique_lock<std::mutex>& lock, Ready ready, const char* what, const Patience& patience) {
  for (;;) {
    if (failure_ || ending_) raise_failure(lock);
    if (ready()) return;
    if (patience.end.passed()) raise(FF_ETIMEOUT, "send: deadline passed before the streams had room for %s", what);
    // Only now and then: each stream's own thread sees its stall, and shutdown() wakes everybody.
    room_.wait_for(lock, std::chrono::milliseconds(patience.end.poll_ms(10000)));
  }
}

void StripedSender::raise_failure(std::unique_lock<std::mutex>& lock) {
  if (!failure_) raise(FF_EIO, "connection closed here");
  const Error error = *failure_;
  const bool wait = error.code() == FF_EIO && !ending_ && !std::exchange(waited_, true);
  lock.unlock();
  if (wait) {  // a peer that closes all streams says why on this one, which may be a moment later
    const Deadline end = Deadline::after_ms(kReasonMs);
    for (pollfd reason{streams_[0]->socket.fd(), POLLIN, 0}; ::poll(&reason, 1, end.poll_ms(kReasonMs)) == 1;) {
      if ((reason.revents & (POLLIN | POLLHUP)) != 0 || end.passed()) break;
      streams_[0]->socket.zero_copy().collect();  // what stirred was a completion
    }
  }
  throw error;
}

size_t StripedSender::receive_some(void* target, size_t bytes) {
  for (auto& stream : streams_) stream->socket.zero_copy().collect();
  const size_t got = streams_[0]->socket.receive_some(target, bytes);
  if (got > 0) {
    end_measurement();
    return got;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  if (failure_) raise_failure(lock);
  return 0;
}

void StripedSender::run(size_t number) noexcept {
  Strand& stream = *streams_[number];
  CpuMeter cpu;
  std::unique_lock<std::mutex> lock(mutex_);
  try {
    for (;;) {
      stream.work.wait(lock, [&] { return ending_ || stream.waiting; });
      if (ending_) return;
      const Piece piece = *stream.waiting;
      stream.waiting.reset();
      stream.sending = true;
      room_.notify_one();
      lock.unlock();
      if (piece.first) stream.socket.start(piece.header, piece.patience);
      stream.socket.data(piece.data, piece.bytes, piece.patience);
      lock.lock();
      stream.sending = false;
      cpu_ns_ += cpu.lap();
      if (--pending_ == 0) busy_ns_ += monotonic_ns() - busy_since_;
      if (stream.pending() == 0) room_.notify_one();
    }
  } catch (const Error& error) {
    fail(number, error);
  } catch (const std::exception& error) {
    fail(number, Error(FF_EINTERNAL, error.what()));
  }
}

void StripedSender::fail(size_t number, const Error& error) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_) failure_ = Error(error.code(), "stream " + std::to_string(number) + ": " + error.what());
  for (size_t other = 1; other < streams_.size(); ++other) streams_[other]->socket.shutdown();
  failed_.ring();
  room_.notify_all();
}

void StripedSender::shutdown() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  ending_ = true;
  for (auto& stream : streams_) {
    stream->socket.shutdown();
    stream->work.notify_one();
  }
  room_.notify_all();
}

void StripedSender::release() noexcept {
  shutdown();
  for (auto& stream : streams_) {
    if (stream->thread.joinable()) stream->thread.join();
  }
}

Transport::Usage StripedSender::take_usage() noexcept {
  Usage usage;
  for (auto& stream : streams_) usage.zero_copy_bytes += stream->socket.take_usage().zero_copy_bytes;
  const std::lock_guard<std::mutex> lock(mutex_);
  usage.cpu_ns = std::exchange(cpu_ns_, 0);
  return usage;
}

}  // namespace ff
