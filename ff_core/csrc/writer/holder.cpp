#include "writer/holder.h"

#include <poll.h>

#include <algorithm>
#include <cstring>

#include "transport/version_frames.h"

namespace ff {

HolderLink::HolderLink(std::unique_ptr<Transport> transport, const ArenaView& arena, const LinkOptions& options,
                       Counters& counters, LinkOwner& owner)
    : arena_(arena),
      options_(options),
      counters_(counters),
      owner_(owner),
      transport_(std::move(transport)),
      pacer_(options.bandwidth_bytes_per_s) {
  thread_ = start_thread("ff-send", [this] { run(); });
}

HolderLink::~HolderLink() {
  stop();
}

void HolderLink::stop() {
  stopping_.store(true);
  transport_->shutdown();
  bell_.ring();
  if (thread_.joinable()) thread_.join();
}

void HolderLink::enqueue(std::shared_ptr<Flight> flight) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(flight));
  }
  bell_.ring();
}

std::shared_ptr<Flight> HolderLink::next() {
  std::shared_ptr<Flight> flight;
  wait(
      [&] {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (queue_.empty()) return false;
        flight = std::move(queue_.front());
        queue_.pop_front();
        return true;
      },
      INT64_MAX);
  return flight;
}

void HolderLink::run() noexcept {
  CpuMeter cpu;
  try {
    for (;;) {
      const std::shared_ptr<Flight> flight = next();
      send_version(*flight);
      unacknowledged_.push_back({flight, monotonic_ns()});
      counters_.cpu_ns += cpu.lap();
      count_usage();
    }
  } catch (const Stopped&) {
  } catch (const Error& error) {
    lose(error);
  } catch (const std::exception& error) {
    lose(Error(FF_EINTERNAL, error.what()));
  }
  transport_->release();
  counters_.cpu_ns += cpu.lap();
  count_usage();
}

void HolderLink::count_usage() {
  const Transport::Usage usage = transport_->take_usage();
  counters_.cpu_ns += usage.cpu_ns;
  counters_.zero_copy_bytes += usage.zero_copy_bytes;
}

void HolderLink::lose(const Error& error) {
  Error reason = error;
  if (!stopping_ && error.code() == FF_EIO) {
    try {
      read_acknowledgements();  // a send fails although the peer has said why it closed
    } catch (const Error& better) {
      if (better.code() == FF_EPROTO) reason = better;
    }
  }
  transport_->shutdown();  // the peer shall know at once, whatever it was
  if (!stopping_) owner_.on_lost(reason);
}

void HolderLink::wait(const std::function<bool()>& ready, int64_t until_ns) {
  for (;;) {
    if (stopping_) throw Stopped();
    if (ready()) return;
    const int64_t now = monotonic_ns();
    if (now >= until_ns) return;
    int64_t end = until_ns;
    if (!unacknowledged_.empty()) {
      const int64_t late = unacknowledged_.front().sent_ns + options_.stall_ms * 1000000;
      if (now >= late) raise(FF_ETIMEOUT, "no acknowledgement for %lld ms", static_cast<long long>(options_.stall_ms));
      end = std::min(end, late);
    }
    timespec timeout{};
    if (end != INT64_MAX) timeout = {(end - now) / 1000000000, (end - now) % 1000000000};
    pollfd waits[2] = {{bell_.fd(), POLLIN, 0}, {transport_->fd(), POLLIN, 0}};
    if (::ppoll(waits, 2, end == INT64_MAX ? nullptr : &timeout, nullptr) < 0) {
      if (errno == EINTR) continue;
      raise_errno(errno, "poll");
    }
    if (waits[0].revents != 0) bell_.silence();
    if (waits[1].revents != 0 && !stopping_) read_acknowledgements();
  }
}

bool HolderLink::training_busy() const {
  constexpr uint64_t kInCollective = 1;  // see ff_status_page
  if (options_.page != nullptr && ff_page_load(&options_.page->activity) == kInCollective) return true;
  return options_.collectives->in_flight();
}

void HolderLink::await_turn() {
  for (int64_t now = monotonic_ns();;) {
    const Pacer::Verdict verdict = pacer_.ask(now, [this] { return training_busy(); });
    if (verdict.why == Pacer::Why::kGo) return;
    wait([] { return false; }, verdict.until_ns);
    const int64_t after = monotonic_ns();
    const auto waited = static_cast<uint64_t>(after - now);
    (verdict.why == Pacer::Why::kYield ? counters_.yielded_ns : counters_.paced_ns) += waited;
    now = after;
  }
}

void HolderLink::send_data(FrameHeader frame, const uint8_t* data) {
  const Patience patience{options_.stall_ms, Deadline::never()};
  seal_frame(frame);
  const int64_t begun = monotonic_ns();
  transport_->start(frame, patience);  // may wait for other streams
  counters_.send_ns += static_cast<uint64_t>(monotonic_ns() - begun);
  for (uint64_t sent = 0; sent < frame.length;) {
    const uint64_t piece = std::min(pacer_.piece(), frame.length - sent);
    if (!pacer_.free()) await_turn();
    const int64_t start = monotonic_ns();
    transport_->data(data + sent, piece, patience);
    pacer_.sent(piece, start);
    counters_.send_ns += static_cast<uint64_t>(monotonic_ns() - start);
    sent += piece;
  }
  counters_.bytes_sent += sizeof frame + frame.length;
}

void HolderLink::send_version(const Flight& flight) {
  const VersionId id{arena_.layout().rank, flight.epoch, flight.version};
  const SlotView slot(arena_, flight.slot);
  const auto ready = [&](uint32_t chunks) { return flight.ready.load(std::memory_order_acquire) >= chunks; };
  // Before there is anything to send, time does not count: not for the deadline, nor for what is learned of the speed.
  if (arena_.geometry().sent_chunks() > 0) wait([&] { return ready(1); }, INT64_MAX);
  pacer_.begin(arena_.layout().sent_bytes, flight.deadline_ns, monotonic_ns());
  if (flight.journal) {
    send_data(journal_frame(id, flight.journal->data(), flight.journal->size()), flight.journal->data());
  }
  const BeginBody body = begin_body(arena_);
  send_data(begin_frame(id, body, flight.checksummed), reinterpret_cast<const uint8_t*>(&body));
  for (uint32_t chunk = 0; chunk < arena_.geometry().sent_chunks(); ++chunk) {
    if (!ready(chunk + 1)) wait([&] { return ready(chunk + 1); }, INT64_MAX);
    if (!unacknowledged_.empty()) read_acknowledgements();
    send_data(chunk_frame(id, arena_, slot, chunk, flight.checksummed),
              slot.payload() + arena_.geometry().chunk(chunk).offset);
  }
  wait([&] { return flight.blob_ready.load(std::memory_order_acquire); }, INT64_MAX);
  send_data(blob_frame(id, flight.blob_bytes, flight.blob_crc), slot.blob());
}

void HolderLink::read_acknowledgements() {
  while (const size_t got = transport_->receive_some(inbox_ + inbox_bytes_, sizeof inbox_ - inbox_bytes_)) {
    inbox_bytes_ += got;
    while (inbox_bytes_ >= sizeof(FrameHeader)) {
      const size_t before = inbox_bytes_;
      handle_frame();
      if (inbox_bytes_ == before) break;  // a longer frame, not all here yet
    }
  }
}

void HolderLink::handle_frame() {
  FrameHeader frame;
  std::memcpy(&frame, inbox_, sizeof frame);
  check_frame(frame);
  if (frame.type == static_cast<uint16_t>(FrameType::kReject)) {
    if (frame.length > kMaxRejectText)
      raise(FF_EPROTO, "REJECT of %llu bytes", static_cast<unsigned long long>(frame.length));
    if (inbox_bytes_ < sizeof frame + frame.length) return;
    raise(FF_EPROTO, "the holder refused: %.*s", static_cast<int>(frame.length),
          reinterpret_cast<const char*>(inbox_ + sizeof frame));
  }
  if (frame.type != static_cast<uint16_t>(FrameType::kAck) || frame.length != 0) {
    raise(FF_EPROTO, "unexpected %s frame of %llu bytes from a holder", name_of(frame.type),
          static_cast<unsigned long long>(frame.length));
  }
  if (unacknowledged_.empty()) raise(FF_EPROTO, "acknowledgement of a version that was not sent");
  const auto [flight, sent_ns] = unacknowledged_.front();
  if (frame.epoch != flight->epoch || frame.version != flight->version || frame.rank != arena_.layout().rank) {
    raise(FF_EPROTO, "acknowledgement of (%llu, %lld), expected (%llu, %lld)",
          static_cast<unsigned long long>(frame.epoch), static_cast<long long>(frame.version),
          static_cast<unsigned long long>(flight->epoch), static_cast<long long>(flight->version));
  }
  const int64_t now = monotonic_ns();
  count_usage();  // before the version counts as committed
  unacknowledged_.pop_front();
  counters_.ack_wait_ns += static_cast<uint64_t>(now - sent_ns);
  const int64_t deadline = flight->deadline_ns;
  const bool missed = deadline != 0 && now > deadline;
  if (deadline != 0) ++counters_.deadlines;
  if (missed) ++counters_.deadlines_missed;
  if (unacknowledged_.empty()) pacer_.acknowledged(now, missed);
  inbox_bytes_ -= sizeof frame;
  std::memmove(inbox_, inbox_ + sizeof frame, inbox_bytes_);
  owner_.on_acknowledged(*flight);
}

}  // namespace ff
