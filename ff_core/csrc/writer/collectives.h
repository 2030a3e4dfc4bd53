// The training's collectives on a device: whether one is in flight, so that sending can keep out of its way.
//
// A launch returns at once, so the host cannot tell; the device can. Whoever launches a collective records two events:
// one on the stream that it comes behind, and, when that is settled, one on a stream that has the collective behind it.
// Between the two it is in flight. Streams run in order. So of what began on one stream only the oldest that is not over
// has to be asked about.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"

namespace ff {

class DeviceArena;

class Collectives {
 public:
  using Ticket = uint64_t;  // 0: not followed

  Collectives();
  ~Collectives();
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;

  // The device of all streams below; null: none, nothing is followed. Forgets what was followed on another one.
  void set_device(std::shared_ptr<DeviceArena> arena);

  // Any thread, without waiting for the device.
  Ticket begin(DeviceStream stream);              // one comes next, behind what is on the stream
  void end(Ticket ticket, DeviceStream stream);   // it is behind what is on the stream now; a ticket used up: nothing
  void forget(Ticket ticket);                     // it is over, or nobody will ever know when
  void forget_all();
  // A device that fails has none in flight: who wants to send what is in the slots shall do so.
  bool in_flight() noexcept;

 private:
  enum class State { kOpen, kEnding, kOver };  // kEnding: `over` is recorded, or about to be
  struct Followed {
    Ticket ticket;
    std::unique_ptr<OwnedEvent> begun, over;
    State state;
  };
  using Queue = std::deque<Followed>;  // of one stream, in its order

  // A script that never waits for its collectives, or a device far behind its launches: only the newest count.
  static constexpr size_t kMost = 4096;
  static constexpr int kDropped = 64;  // at a time: each asks the driver

  // All under mutex_.
  void clear() noexcept;
  Followed* find(Ticket ticket);
  void drop_oldest(Queue& queue);
  void drop_ended(Queue& queue);
  std::unique_ptr<OwnedEvent> event();
  void keep(std::unique_ptr<OwnedEvent> event);

  std::mutex mutex_;  // taken last; nothing is recorded under it, for a full queue of the device makes that wait
  std::shared_ptr<DeviceArena> arena_;  // the events below die before their device
  std::vector<std::unique_ptr<OwnedEvent>> spare_;
  std::map<DeviceStream, Queue> queues_;
  Ticket last_ = 0;
  uint64_t era_ = 0;  // how often all was forgotten
};

}  // namespace ff
