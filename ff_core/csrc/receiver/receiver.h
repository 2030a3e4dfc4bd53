// The receiver takes versions off connections and puts them into slots, one thread per stream of a connection. Where the
// data do not come through the stream (shared memory), several threads share one: each in turn reads a frame, and copies
// what it names while the next one reads.
//
// A connection belongs to one arena and one epoch. Anything that does not fit (frame of another epoch, rank or layout,
// wrong checksum, wrong order, wrong length) ends the connection with one message; the slot being written stays
// WRITING, every other slot stays as it is. An arena has at most one connection, so a slot never has two writers.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/thread.h"
#include "receiver/arrival.h"
#include "slots/arena.h"
#include "slots/slot.h"
#include "transport/transport.h"
#include "transport/wire.h"

namespace ff {

class Connection {
 public:
  // copiers: threads of a single stream.
  Connection(uint64_t id, Streams streams, size_t copiers, void* arena, uint64_t arena_bytes, uint64_t epoch,
             const Bell& bell);
  ~Connection();  // stop()

  void interrupt();  // shuts the sockets down: the threads end soon
  void stop();       // interrupt() and join: afterwards the arena is not touched
  uint64_t epoch() const { return epoch_; }
  const void* arena_address() const { return arena_.at(0); }
  bool finished() const { return finished_.load(); }
  ff_receiver_status status() const;

 private:
  using Turn = std::unique_lock<std::mutex>;  // whoever reads a stream has it

  void run() noexcept;  // the first thread of stream 0, which ends the others
  void run_further(size_t stream) noexcept;
  void serve(size_t stream);  // until the peer closes it
  bool serve_frame(size_t stream);  // false: the peer has closed it
  bool serve_frame(size_t stream, Turn& turn);
  void on_journal(const FrameHeader& frame);
  void on_begin(const FrameHeader& frame);
  void on_chunk(const FrameHeader& frame, size_t stream, Turn& turn);  // may give the turn up
  void on_blob(const FrameHeader& frame);
  void check_addressee(const FrameHeader& frame) const;
  void expect_crc(const FrameHeader& frame, uint32_t crc) const;
  uint32_t choose_slot(uint64_t stamp) const;
  void reply(FrameType type, int64_t version, const std::string& text);
  // The first reason for the end counts; the peer is told if it can be. False: there was one already.
  bool conclude(size_t stream, const std::exception& error) noexcept;
  bool set_reason(int error, std::string message);
  bool shares_stream() const { return copiers_ > 1; }
  void hang_up() noexcept;  // ends what the threads wait for
  void join_further();

  const uint64_t id_;
  const ArenaView arena_;
  const uint64_t epoch_;
  const Bell& bell_;
  const Streams streams_;
  const size_t copiers_;
  std::vector<std::mutex> turns_;  // one per stream
  Arrival arrival_;

  std::atomic<uint64_t> last_stamp_{0}, bytes_{0}, journals_{0};
  std::atomic<bool> finished_{false};
  std::atomic<bool> failed_{false};  // a thread that shares its stream has: no further frame is read
  std::mutex answer_mutex_;  // what is sent on stream 0
  std::mutex reason_mutex_;
  bool concluded_ = false;  // these three under reason_mutex_, and unchanged once finished_
  int error_ = FF_OK;
  std::string message_;
  std::vector<std::thread> further_;  // of streams 1 and up, or more of stream 0
  std::thread thread_;
};

class Receiver {
 public:
  explicit Receiver(int notify_fd) : bell_(notify_fd) {}

  uint64_t attach(Streams streams, size_t copiers, void* arena, uint64_t arena_bytes, uint64_t epoch);
  void detach(const void* arena);
  void retire_before(uint64_t epoch);
  size_t poll(ff_receiver_status* out, size_t capacity);

 private:
  using Connections = std::vector<std::unique_ptr<Connection>>;
  template <class Match>
  void stop_where(Match match);  // under mutex_

  const Bell bell_;  // outlives the connections
  std::mutex mutex_;
  uint64_t epoch_ = 0;  // connections of older ones are refused
  uint64_t next_id_ = 1;
  Connections connections_;
};

}  // namespace ff
