#include "receiver/receiver.h"

#include <algorithm>

namespace ff {

template <class Match>
void Receiver::stop_where(Match match) {
  // All sockets first: joining one after the other then takes as long as the slowest, not as their sum.
  for (auto& connection : connections_) {
    if (match(*connection)) connection->interrupt();
  }
  for (auto& connection : connections_) {
    if (match(*connection)) connection->stop();
  }
}

uint64_t Receiver::attach(Streams streams, size_t copiers, void* arena, uint64_t arena_bytes, uint64_t epoch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (epoch < epoch_) {
    raise(FF_EINVAL, "connection of epoch %llu: epochs before %llu are retired",
          static_cast<unsigned long long>(epoch), static_cast<unsigned long long>(epoch_));
  }
  stop_where([&](const Connection& connection) { return connection.arena_address() == arena; });
  connections_.push_back(
      std::make_unique<Connection>(next_id_, std::move(streams), copiers, arena, arena_bytes, epoch, bell_));
  return next_id_++;
}

void Receiver::detach(const void* arena) {
  const std::lock_guard<std::mutex> lock(mutex_);
  stop_where([&](const Connection& connection) { return connection.arena_address() == arena; });
}

void Receiver::retire_before(uint64_t epoch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  epoch_ = std::max(epoch_, epoch);
  stop_where([&](const Connection& connection) { return connection.epoch() < epoch; });
}

size_t Receiver::poll(ff_receiver_status* out, size_t capacity) {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t count = 0;
  for (auto at = connections_.begin(); at != connections_.end() && count < capacity;) {
    out[count] = (*at)->status();
    at = out[count].open ? at + 1 : connections_.erase(at);
    ++count;
  }
  return count;
}

}  // namespace ff
