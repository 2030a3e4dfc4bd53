// The writer's holders: how they are added, dropped, lost, and what a cancel does to them.
#include <algorithm>

#include "base/error.h"
#include "writer/writer.h"

namespace ff {

void Writer::expect_no_cancel(uint64_t since) const {
  if (cancels_ != since) raise(FF_ECANCELLED, "add_holder: cancelled");
}

void Writer::connect(Transport& transport, uint64_t since) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    expect_no_cancel(since);
    connecting_.push_back(&transport);
  }
  const auto done = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    connecting_.erase(std::find(connecting_.begin(), connecting_.end(), &transport));
    expect_no_cancel(since);  // better than what the shutdown led to
  };
  try {
    transport.connect();
  } catch (...) {
    done();
    throw;
  }
  done();
}

void Writer::add_holder(const std::function<std::unique_ptr<Transport>(const void* arena)>& make) {
  uint64_t since;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_idle("add_holder");
    since = cancels_;
  }
  auto transport = make(arena_.at(0));
  connect(*transport, since);
  const std::lock_guard<std::mutex> control(control_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_idle("add_holder");
    expect_no_cancel(since);
  }
  auto link = std::make_unique<HolderLink>(std::move(transport), arena_, link_options_, counters_, *this);
  const std::lock_guard<std::mutex> lock(mutex_);
  links_.push_back(std::move(link));
  journal_sequence_ = 0;  // the new one has none
}

void Writer::clear_holders() {
  const std::lock_guard<std::mutex> control(control_);
  std::vector<std::unique_ptr<HolderLink>> links;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_idle("clear_holders");
    links.swap(links_);
  }
  for (auto& link : links) link->stop();
  const std::lock_guard<std::mutex> lock(mutex_);
  lost_ = 0;
  problem_ = FF_OK;
}

void Writer::cancel() {
  const std::lock_guard<std::mutex> control(control_);
  std::vector<std::unique_ptr<HolderLink>> links;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelling_ = true;
    ++cancels_;
    for (Transport* transport : connecting_) transport->shutdown();
    for (auto& flight : flights_) flight->cancelled.store(true);
    links.swap(links_);
    changed_.notify_all();
  }
  for (auto& link : links) link->stop();
  collectives_.forget_all();  // a halt's: they are aborted, and their handles may live on in a traceback
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !busy_; });
  // Links that the copy thread rang in the meantime are gone from its sight: they were swapped out under mutex_.
  if (!flights_.empty()) cancelled_version_ = flights_.back()->version;
  flights_.clear();
  last_stamp_ = 0;
  lost_ = 0;
  problem_ = FF_OK;
  cancelling_ = false;
  changed_.notify_all();
}

void Writer::on_lost(const Error& error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++lost_;
  problem_ = error.code();
  problem_text_ = std::string("a holder of rank ") + std::to_string(arena_.layout().rank) + " is lost: " + error.what();
  notify_.ring();
}

}  // namespace ff
