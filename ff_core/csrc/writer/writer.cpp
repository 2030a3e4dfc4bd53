#include "writer/writer.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace ff {
namespace {

using ull = unsigned long long;
constexpr int64_t kDefaultStallMs = 30000;
constexpr uint64_t kHourUs = 3600ull * 1000 * 1000;  // longer is as good as this

const ff_writer_options& checked(const ff_writer_options& options) {
  if (options.stall_timeout_ms < 0)
    raise(FF_EINVAL, "stall_timeout_ms is %d, it must not be negative", options.stall_timeout_ms);
  if (options.checksum != 0 && options.checksum != 1)
    raise(FF_EINVAL, "checksum is %d, allowed are 0 and 1", options.checksum);
  return options;
}

}  // namespace

Writer::Writer(const ff_writer_options& options)
    : arena_(checked(options).arena, options.arena_bytes),
      page_(options.page),
      notify_(options.notify_fd),
      checksum_(options.checksum == 1),
      link_options_{options.bandwidth_bytes_per_s,
                    options.stall_timeout_ms == 0 ? kDefaultStallMs : options.stall_timeout_ms,
                    options.page, &collectives_} {
  copy_thread_ = start_thread("ff-copy", [this] { run_copies(); });
}

Writer::~Writer() {
  cancel();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  copy_thread_.join();
}

void Writer::check_idle(const char* what) const {
  if (cancelling_) raise(FF_ECANCELLED, "%s: a cancel is under way", what);
  if (flights_.empty()) return;
  raise(FF_EINVAL, "%s: version (%llu, %lld) is in flight; wait until it is committed, or cancel", what,
        ull{flights_.front()->epoch}, static_cast<long long>(flights_.front()->version));
}

void Writer::set_segments(const ff_segment* segments, size_t count) {
  const std::lock_guard<std::mutex> control(control_);
  auto map = std::make_unique<const SegmentMap>(segments, count, arena_.geometry());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_idle("set_segments");
  }
  auto source = open_source(*map);
  const std::lock_guard<std::mutex> lock(mutex_);
  segments_ = std::move(map);
  source_.swap(source);
}

std::shared_ptr<Flight> Writer::find(int64_t version) const {
  for (const auto& flight : flights_) {
    if (flight->version == version) return flight;
  }
  return nullptr;
}

void Writer::check_launch(uint32_t slot, uint64_t epoch, int64_t version) const {
  check_stamp(epoch, version);
  const SlotView view(arena_, slot);
  if (cancelling_)
    raise(FF_ECANCELLED, "version (%llu, %lld): a cancel is under way", ull{epoch}, static_cast<long long>(version));
  const uint64_t stamp = make_stamp(epoch, version);
  for (const auto& flight : flights_) {
    const auto flying = static_cast<long long>(flight->version);
    if (flight->slot == slot)
      raise(FF_EINVAL, "slot %u still holds version (%llu, %lld), which is in flight", slot, ull{flight->epoch},
            flying);
    if (!flight->sealed)
      raise(FF_EINVAL, "version (%llu, %lld) is in flight and not sealed yet", ull{flight->epoch}, flying);
    if (flight->stamp() >= stamp) {
      raise(FF_EINVAL, "version (%llu, %lld) is not newer than (%llu, %lld), which is in flight", ull{epoch},
            static_cast<long long>(version), ull{flight->epoch}, flying);
    }
  }
  if (stamp < last_stamp_) {
    raise(FF_EINVAL, "version (%llu, %lld) is older than the last one, (%llu, %lld)", ull{epoch},
          static_cast<long long>(version), ull{last_stamp_ >> 40},
          static_cast<long long>(last_stamp_ & ((uint64_t{1} << 40) - 1)) - 1);
  }
}

void Writer::attach_journal(Flight& flight) {
  if (links_.empty()) return;
  const JournalView journal(arena_);
  if (journal.sequence() == journal_sequence_) return;
  flight.journal = std::make_shared<const std::vector<uint8_t>>(journal.copy(&journal_sequence_));
}

void Writer::launch(const std::shared_ptr<Flight>& flight) {
  last_stamp_ = flight->stamp();
  flights_.push_back(flight);
  for (auto& link : links_) link->enqueue(flight);
  changed_.notify_all();
}

void Writer::begin(uint32_t slot, uint64_t epoch, int64_t version, DeviceStream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_launch(slot, epoch, version);
  if (segments_ == nullptr) raise(FF_EINVAL, "begin: no segments are set");
  auto flight = std::make_shared<Flight>(slot, epoch, version, false, checksum_);
  attach_journal(*flight);
  flight->window_ns = window_ns_;
  flight->spread_ns = spread_ns_;
  if (hold_ns_ > 0) flight->held_until_ns = monotonic_ns() + hold_ns_;
  if (source_ != nullptr) {
    flight->source = source_;
    flight->marks = source_->mark(stream);
  }
  SlotView(arena_, slot).begin(epoch, version);
  launch(flight);
}

void Writer::resend(uint32_t slot, uint64_t epoch, int64_t version) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_launch(slot, epoch, version);
  const SlotRecord record = SlotView(arena_, slot).complete_record();
  if (record.epoch != epoch || record.version != version) {
    raise(FF_EINVAL, "resend of (%llu, %lld): slot %u holds (%llu, %lld)", ull{epoch}, static_cast<long long>(version),
          slot, ull{record.epoch}, static_cast<long long>(record.version));
  }
  auto flight = std::make_shared<Flight>(slot, epoch, version, true, (record.flags & kChecksummed) != 0);
  flight->copied = flight->sealed = true;
  flight->blob_bytes = record.blob_bytes;
  flight->blob_crc = record.blob_crc;
  attach_journal(*flight);
  launch(flight);
}

void Writer::seal(int64_t version, const void* blob, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto flight = find(version);
  if (cancelling_ || (flight == nullptr && was_cancelled(version))) {
    raise(FF_ECANCELLED, "seal: version %lld was cancelled", static_cast<long long>(version));
  }
  if (flight == nullptr) raise(FF_EINVAL, "seal: version %lld is not in flight", static_cast<long long>(version));
  if (flight->sealed) raise(FF_EINVAL, "seal: version %lld is sealed already", static_cast<long long>(version));
  if (bytes > arena_.layout().blob_capacity) {
    raise(FF_ENOSPACE,
          "seal: the scalars of version %lld have %llu bytes, the arena holds %llu: raise the blob capacity",
          static_cast<long long>(version), ull{bytes}, ull{arena_.layout().blob_capacity});
  }
  if (blob == nullptr && bytes > 0) raise(FF_EINVAL, "seal: blob is null, bytes is %llu", ull{bytes});
  if (bytes > 0) std::memcpy(SlotView(arena_, flight->slot).blob(), blob, bytes);
  flight->blob_bytes = bytes;
  flight->sealed = true;
  changed_.notify_all();
}

void Writer::wait_copied(int64_t version, int64_t timeout_ms) {
  await_flight(version, timeout_ms, "wait_copied", [](const Flight&) { return false; });
}

std::shared_ptr<Flight> Writer::await_flight(int64_t version, int64_t timeout_ms, const char* what,
                                             bool (*enough)(const Flight&)) {
  const Deadline deadline = Deadline::after_ms(timeout_ms);
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto flight = find(version);
    if (flight != nullptr && (flight->copied || flight->failed)) return nullptr;
    if (flight != nullptr && enough(*flight)) return flight;
    if (flight == nullptr && version >= 0 && version <= committed_version_) return nullptr;
    if (flight == nullptr && was_cancelled(version)) {
      raise(FF_ECANCELLED, "version %lld was cancelled", static_cast<long long>(version));
    }
    if (flight == nullptr)
      raise(FF_EINVAL, "%s: version %lld was never begun", what, static_cast<long long>(version));
    if (deadline.passed()) {
      raise(FF_ETIMEOUT, "version %lld was not copied within %lld ms", static_cast<long long>(version),
            static_cast<long long>(timeout_ms));
    }
    changed_.wait_for(lock, std::chrono::milliseconds(deadline.poll_ms(1000)));
  }
}

void Writer::check() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (problem_ != FF_OK) throw Error(problem_, problem_text_);
}

void Writer::on_acknowledged(Flight& flight) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++flight.acknowledgements;
  commit();
}

void Writer::commit() {
  bool any = false;
  while (!flights_.empty() && !cancelling_) {
    const Flight& flight = *flights_.front();
    if (!flight.own_complete || flight.failed || flight.acknowledgements < links_.size()) break;
    committed_version_ = flight.version;
    ++counters_.versions;
    if (page_ != nullptr) ff_page_store(&page_->committed, flight.stamp());
    flights_.pop_front();
    any = true;
  }
  if (!any) return;
  notify_.ring();
  changed_.notify_all();
}

void Writer::set_window(uint64_t window_us) {
  const std::lock_guard<std::mutex> lock(mutex_);
  window_ns_ = static_cast<int64_t>(std::min(window_us, kHourUs)) * 1000;
}

void Writer::set_downloads(uint64_t hold_us, uint64_t spread_us) {
  const std::lock_guard<std::mutex> lock(mutex_);
  hold_ns_ = static_cast<int64_t>(std::min(hold_us, kHourUs)) * 1000;
  spread_ns_ = static_cast<int64_t>(std::min(spread_us, kHourUs)) * 1000;
}

void Writer::go() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& flight : flights_) flight->go = true;
  changed_.notify_all();
}

void Writer::wake_links() {
  for (auto& link : links_) link->wake();
}

ff_writer_stats Writer::stats() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ff_writer_stats out{};
  out.versions = counters_.versions;
  out.bytes_copied = counters_.bytes_copied;
  out.bytes_sent = counters_.bytes_sent;
  out.copy_ns = counters_.copy_ns;
  out.send_ns = counters_.send_ns;
  out.ack_wait_ns = counters_.ack_wait_ns;
  out.cpu_ns = counters_.cpu_ns;
  out.yielded_ns = counters_.yielded_ns;
  out.paced_ns = counters_.paced_ns;
  out.deadlines = counters_.deadlines;
  out.deadlines_missed = counters_.deadlines_missed;
  out.zero_copy_bytes = counters_.zero_copy_bytes;
  out.holders = links_.size();
  for (const auto& link : links_) out.streams += link->streams();
  out.holders_lost = lost_;
  return out;
}

}  // namespace ff
