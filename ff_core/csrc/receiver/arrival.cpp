#include "receiver/arrival.h"

#include <algorithm>
#include <chrono>

namespace ff {
namespace {

using ull = unsigned long long;

// A sender that dies ends all its streams, but one a little before the other; what it has sent still counts.
constexpr std::chrono::milliseconds kOthersEnd{500};

[[noreturn]] void raise_stopped() {
  raise(FF_EIO, "the connection is ending");
}

}  // namespace

void Arrival::expect_none(const FrameHeader& begin) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (arriving_) {
    raise(FF_EPROTO, "BEGIN of version %lld before version %lld was complete", static_cast<long long>(begin.version),
          static_cast<long long>(version_.version));
  }
  if (ended_ > 0) {
    raise(FF_EIO, "BEGIN of version %lld, but stream %zu was closed by the peer",
          static_cast<long long>(begin.version), ended_);
  }
}

void Arrival::begin(const Version& version) {
  const std::lock_guard<std::mutex> lock(mutex_);
  version_ = version;
  arriving_ = true;
  claimed_.assign(geometry_.sent_chunks(), false);
  next_ = landed_ = 0;
  changed_.notify_all();
}

void Arrival::check_version(const FrameHeader& frame) const {
  if (!arriving_) raise(FF_EPROTO, "%s frame without BEGIN", name_of(frame.type));
  if (frame.version != version_.version) {
    raise(FF_EPROTO, "%s frame of version %lld within version %lld", name_of(frame.type),
          static_cast<long long>(frame.version), static_cast<long long>(version_.version));
  }
}

Arrival::Version Arrival::claim(const FrameHeader& chunk, size_t stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (stream > 0) {
    const auto early = [&] { return arriving_ ? chunk.version > version_.version : chunk.version >= version_.version; };
    awaited_[stream - 1] = chunk.version;
    if (all_gone_on()) changed_.notify_all();
    changed_.wait(lock, [&] { return stopped_ || !early(); });
    awaited_[stream - 1] = kNothing;
    if (stopped_) raise_stopped();
  }
  check_version(chunk);
  const uint32_t count = geometry_.sent_chunks();
  if (chunk.index >= count || (ordered_ && chunk.index != next_)) {
    raise(FF_EPROTO, ordered_ ? "CHUNK %llu, expected %u of %u" : "CHUNK %llu, after %u of %u", ull{chunk.index}, next_,
          count);
  }
  const auto index = static_cast<uint32_t>(chunk.index);
  if (claimed_[index]) {
    raise(FF_EPROTO, "CHUNK %u of version %lld a second time", index, static_cast<long long>(chunk.version));
  }
  const uint64_t bytes = geometry_.chunk(index).bytes;
  if (chunk.length != bytes) {
    raise(FF_EPROTO, "CHUNK %u has %llu bytes, expected %llu", index, ull{chunk.length}, ull{bytes});
  }
  claimed_[index] = true;
  ++next_;
  return version_;
}

void Arrival::landed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++landed_;
  if (complete() || nobody_brings_more()) changed_.notify_all();
}

Arrival::Version Arrival::await_chunks(const FrameHeader& blob) {
  std::unique_lock<std::mutex> lock(mutex_);
  check_version(blob);
  changed_.wait(lock, [this] { return stopped_ || complete() || nobody_brings_more(); });
  if (stopped_) raise_stopped();
  if (!complete()) raise(FF_EPROTO, "BLOB after %u of %u chunks", landed_, geometry_.sent_chunks());
  return version_;
}

bool Arrival::nobody_brings_more() const {
  return ordered_ ? landed_ == next_ : all_gone_on();
}

bool Arrival::all_gone_on() const {
  return std::all_of(awaited_.begin(), awaited_.end(), [this](int64_t awaited) { return awaited > version_.version; });
}

void Arrival::end() {
  const std::lock_guard<std::mutex> lock(mutex_);
  arriving_ = false;
}

void Arrival::stream_ended(size_t stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (stream > 0) {
    ended_ = stream;
    changed_.wait_for(lock, kOthersEnd, [this] { return stopped_ || !arriving_ || complete(); });
    if (stopped_) return;
  }
  if (arriving_ && (stream == 0 || !complete())) {
    raise(FF_EIO, "the peer closed in the middle of version (%llu, %lld)", ull{epoch_},
          static_cast<long long>(version_.version));
  }
}

void Arrival::stop() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace ff
