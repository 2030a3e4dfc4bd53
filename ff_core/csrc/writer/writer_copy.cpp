// The writer's copy thread: live tensors -> slot, chunk by chunk, checksummed as they are copied; then the slot's
// header.
#include "base/error.h"
#include "checksum/crc32c.h"
#include "writer/writer.h"

namespace ff {

std::shared_ptr<Flight> Writer::next_work() const {
  if (cancelling_) return nullptr;
  for (const auto& flight : flights_) {
    if (!flight->failed && !flight->own_complete && (flight->sealed || !flight->copied)) return flight;
  }
  return nullptr;
}

void Writer::run_copies() noexcept {
  CpuMeter cpu;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    const std::shared_ptr<Flight> flight = next_work();
    if (flight == nullptr) {
      counters_.cpu_ns += cpu.lap();
      changed_.wait(lock);
      continue;
    }
    busy_ = true;
    try {
      work_on(*flight, lock);
    } catch (const std::exception& error) {
      if (!lock.owns_lock()) lock.lock();
      const auto* known = dynamic_cast<const Error*>(&error);
      fail(*flight, Error(known != nullptr ? known->code() : FF_EINTERNAL, error.what()));
    }
    busy_ = false;
    changed_.notify_all();
  }
  counters_.cpu_ns += cpu.lap();
}

void Writer::work_on(Flight& flight, std::unique_lock<std::mutex>& lock) {
  if (flight.resend) {
    lock.unlock();
    verify(flight);
    lock.lock();
  } else if (!flight.copied) {
    lock.unlock();
    const bool done = copy(flight);
    lock.lock();
    if (!done) return;
    flight.copied = true;
    changed_.notify_all();
    return;  // the seal may have come, or come later: next_work() knows
  } else {
    lock.unlock();
    complete(flight);
    lock.lock();
  }
  if (flight.cancelled.load()) return;
  flight.own_complete = true;
  if (page_ != nullptr) ff_page_store(&page_->own_complete, flight.stamp());
  wake_links();
  commit();
}

void Writer::advance(Flight& flight, uint32_t ready) {
  flight.ready.store(ready, std::memory_order_release);
  const std::lock_guard<std::mutex> lock(mutex_);
  wake_links();
}

bool Writer::copy(Flight& flight) {
  if (flight.source != nullptr) return copy_from_device(flight);
  const Geometry& geometry = arena_.geometry();
  const SlotView slot(arena_, flight.slot);
  flight.start_window(monotonic_ns());
  for (uint32_t chunk = 0; chunk < geometry.chunks(); ++chunk) {
    const Range range = geometry.chunk(chunk);
    const int64_t start = monotonic_ns();
    uint32_t crc = 0;
    if (!segments_->copy_chunk(chunk, slot.payload() + range.offset, flight.checksummed, flight.cancelled, &crc))
      return false;
    slot.table()[chunk] = crc;
    publish_stores();
    counters_.copy_ns += static_cast<uint64_t>(monotonic_ns() - start);
    counters_.bytes_copied += range.bytes;
    if (chunk < geometry.sent_chunks()) advance(flight, chunk + 1);
  }
  return !flight.cancelled.load();
}

void Writer::complete(Flight& flight) {
  SlotView slot(arena_, flight.slot);
  flight.blob_crc = crc32c(0, slot.blob(), flight.blob_bytes);
  flight.blob_ready.store(true, std::memory_order_release);
  if (!flight.cancelled.load())
    slot.finish(arena_.geometry().payload_bytes(), flight.checksummed, flight.blob_bytes, flight.blob_crc);
}

void Writer::verify(Flight& flight) {
  const SlotView slot(arena_, flight.slot);
  const SlotRecord record = slot.complete_record();
  slot.verify_head(record);
  for (uint32_t chunk = 0; chunk < slot.filled_chunks(record) && !flight.cancelled.load(); ++chunk) {
    slot.verify_chunk(record, chunk);
    if (chunk < arena_.geometry().sent_chunks()) advance(flight, chunk + 1);
  }
  flight.blob_ready.store(true, std::memory_order_release);
}

void Writer::fail(Flight& flight, const Error& error) {
  flight.failed = true;
  problem_ = error.code();
  problem_text_ = error.what();
  notify_.ring();
}

}  // namespace ff
