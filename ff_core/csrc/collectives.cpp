#include "collectives.h"

#include <algorithm>
#include <utility>

#include "device_arena.h"
#include "error.h"

namespace ff {

Collectives::Collectives() = default;

Collectives::~Collectives() {
  clear();
}

void Collectives::clear() noexcept {
  queues_.clear();
  spare_.clear();
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

Collectives::Followed* Collectives::find_open(Ticket ticket) {
  for (auto& [stream, queue] : queues_) {
    const auto found = std::lower_bound(queue.begin(), queue.end(), ticket,
                                        [](const Followed& one, Ticket wanted) { return one.ticket < wanted; });
    if (found != queue.end() && found->ticket == ticket) return found->state == State::kOpen ? &*found : nullptr;
  }
  return nullptr;
}

void Collectives::drop_oldest(Queue& queue) {
  spare_.push_back(std::move(queue.front().begun));
  spare_.push_back(std::move(queue.front().over));
  queue.pop_front();
}

void Collectives::drop_ended(Queue& queue) {
  while (!queue.empty()) {
    const Followed& oldest = queue.front();
    if (oldest.state == State::kOpen) return;
    if (oldest.state == State::kEnding && !arena_->device().passed(oldest.over->get())) return;
    drop_oldest(queue);
  }
}

Collectives::Ticket Collectives::begin(DeviceStream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (arena_ == nullptr) return 0;
  Queue& queue = queues_[stream];
  drop_ended(queue);
  if (queue.size() == kMost) drop_oldest(queue);
  Followed next{last_ + 1, event(), event(), State::kOpen};
  arena_->device().record(next.begun->get(), stream);
  queue.push_back(std::move(next));
  return ++last_;
}

void Collectives::end(Ticket ticket, DeviceStream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Followed* const one = find_open(ticket);
  if (one == nullptr) return;
  arena_->device().record(one->over->get(), stream);
  one->state = State::kEnding;
}

void Collectives::forget(Ticket ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Followed* const one = find_open(ticket);
  if (one != nullptr) one->state = State::kOver;
}

bool Collectives::in_flight() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
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
