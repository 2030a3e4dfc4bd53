// The connection to one holder: a thread that streams versions in order, chunk by chunk as the copy thread finishes
// them, and reads acknowledgements. A broken or stalled connection ends the thread and is reported once; it never holds
// up anybody else.
#pragma once
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "base/thread.h"
#include "transport/transport.h"
#include "transport/wire.h"
#include "writer/collectives.h"
#include "writer/flight.h"
#include "writer/pacer.h"

namespace ff {

class HolderLink;

// What a link tells the writer. Called from the link's thread, which holds no lock then.
class LinkOwner {
 public:
  virtual void on_acknowledged(Flight& flight) = 0;
  virtual void on_lost(const Error& error) = 0;

 protected:
  ~LinkOwner() = default;
};

struct LinkOptions {
  uint64_t bandwidth_bytes_per_s;
  int64_t stall_ms;
  const ff_status_page* page;  // says what the training thread does; null: nobody knows
  Collectives* collectives;    // what the device does of it
};

class HolderLink {
 public:
  HolderLink(std::unique_ptr<Transport> transport, const ArenaView& arena, const LinkOptions& options,
             Counters& counters, LinkOwner& owner);
  ~HolderLink();  // stop()

  void enqueue(std::shared_ptr<Flight> flight);
  void wake() { bell_.ring(); }  // after a flight's progress changed
  size_t streams() const { return transport_->streams(); }
  void stop();                   // shuts the socket down, joins the thread; idempotent

 private:
  struct Stopped {};  // unwinds the thread
  void run() noexcept;
  void lose(const Error& error);
  void send_version(const Flight& flight);
  void send_data(FrameHeader frame, const uint8_t* data);
  void await_turn();  // until the pacer lets the next piece go
  bool training_busy() const;
  void read_acknowledgements();
  void handle_frame();
  void count_usage();
  std::shared_ptr<Flight> next();
  // Blocks until `ready()`; reads acknowledgements meanwhile. until_ns: give up waiting then (and return), INT64_MAX:
  // never.
  void wait(const std::function<bool()>& ready, int64_t until_ns);

  const ArenaView& arena_;
  const LinkOptions options_;
  Counters& counters_;
  LinkOwner& owner_;
  const std::unique_ptr<Transport> transport_;
  Bell bell_;
  Pacer pacer_;
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;  // guards queue_ only
  std::deque<std::shared_ptr<Flight>> queue_;

  // The thread's own.
  struct Unacknowledged {
    std::shared_ptr<Flight> flight;
    int64_t sent_ns;
  };
  std::deque<Unacknowledged> unacknowledged_;
  uint8_t inbox_[sizeof(FrameHeader) + kMaxRejectText];
  size_t inbox_bytes_ = 0;

  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace ff
