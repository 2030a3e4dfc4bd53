#include "writer/collectives.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "device/device_arena.h"

namespace ff {

Collectives::Collectives() = default;

Collectives::~Collectives() {
  clear();
}

void Collectives::clear() noexcept {
  queues_.clear();
  spare_.clear();
  ++era_;
}

void Collectives::set_device(std::shared_ptr<DeviceArena> arena) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (arena == arena_) return;
  clear();
  arena_ = std::move(arena);
}

std::unique_ptr<OwnedEvent> Collectives::event() {
  if (spare_.empty()) return std::make_unique<OwnedEvent>(arena_->device());
  auto one = std::move(spare_.back());
  spare_.pop_back();
  return one;
}

void Collectives::keep(std::unique_ptr<OwnedEvent> event) {
  if (event != nullptr) spare_.push_back(std::move(event));
}

Collectives::Followed* Collectives::find(Ticket ticket) {
  for (auto& [stream, queue] : queues_) {
    const auto found = std::lower_bound(queue.begin(), queue.end(), ticket,
                                        [](const Followed& one, Ticket wanted) { return one.ticket < wanted; });
    if (found != queue.end() && found->ticket == ticket) return &*found;
  }
  return nullptr;
}

void Collectives::drop_oldest(Queue& queue) {
  keep(std::move(queue.front().begun));
  keep(std::move(queue.front().over));
  queue.pop_front();
}

void Collectives::drop_ended(Queue& queue) {
  for (int dropped = 0; dropped < kDropped && !queue.empty(); ++dropped) {
    const Followed& oldest = queue.front();
    if (oldest.state == State::kOpen) return;
    if (oldest.state == State::kEnding && (oldest.over == nullptr || !arena_->device().passed(oldest.over->get()))) return;
    drop_oldest(queue);
  }
}

Collectives::Ticket Collectives::begin(DeviceStream stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<DeviceArena> arena = arena_;  // outlives the events in here
  if (arena == nullptr) return 0;
  const uint64_t era = era_;
  Followed next{0, event(), event(), State::kOpen};
  lock.unlock();
  arena->device().record(next.begun->get(), stream);
  lock.lock();
  if (era_ != era) return 0;
  Queue& queue = queues_[stream];
  drop_ended(queue);
  if (queue.size() == kMost) drop_oldest(queue);
  next.ticket = ++last_;
  queue.push_back(std::move(next));
  return last_;
}

void Collectives::end(Ticket ticket, DeviceStream stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<DeviceArena> arena = arena_;
  Followed* one = find(ticket);
  if (one == nullptr || one->state != State::kOpen) return;
  one->state = State::kEnding;
  std::unique_ptr<OwnedEvent> over = std::move(one->over);
  lock.unlock();
  try {
    arena->device().record(over->get(), stream);
  } catch (...) {
    forget(ticket);
    throw;
  }
  lock.lock();
  one = find(ticket);
  if (one != nullptr && arena_ == arena) one->over = std::move(over);
}

void Collectives::forget(Ticket ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Followed* const one = find(ticket);
  // One whose end is recorded knows better; one whose end could not be recorded does not.
  if (one != nullptr && (one->state == State::kOpen || one->over == nullptr)) one->state = State::kOver;
}

void Collectives::forget_all() {
  const std::lock_guard<std::mutex> lock(mutex_);
  clear();
}

bool Collectives::in_flight() noexcept {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return true;  // something begins or ends
  try {
    for (auto& [stream, queue] : queues_) {
      drop_ended(queue);
      if (!queue.empty() && arena_->device().passed(queue.front().begun->get())) return true;
    }
  } catch (const Error&) {
  }
  return false;
}

}  // namespace ff
