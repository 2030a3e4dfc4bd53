// A connection of several TCP streams, as its sender sees it: one transport that spreads CHUNKs over them.
//
// Stream 0 is what a connection of one stream is; the others carry CHUNKs only, each from a thread of its own, so that
// one socket's copying, congestion or lost packets do not hold up the others. A CHUNK goes, whole, to the stream that
// has room first. A version may go over the first few of them only, as measurements advise (StreamTuner). docs/wire_format.md says what that means to the receiver, docs/thread_model.md how the threads share.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "transport/stream_tuner.h"
#include "transport/tcp.h"

namespace ff {

class StripedSender final : public Transport {
 public:
  // sockets: stream 0 first; at least two.  fewer: as many of them as the first versions show to be worth it.
  StripedSender(std::vector<UniqueFd> sockets, bool fewer);
  ~StripedSender() override { release(); }

  const char* name() const override { return "tcp"; }
  // The data of a CHUNK must stay as they are until release(), or until the receiver is known to have them.
  void start(const FrameHeader& header, const Patience& patience) override;
  // Of a CHUNK: waits for room, not until the piece is sent. Throws what any stream failed with.
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;
  bool next(FrameHeader* header) override { return streams_[0]->socket.next(header); }
  uint32_t take(void* target, uint64_t bytes, bool checksum) override {
    return streams_[0]->socket.take(target, bytes, checksum);
  }
  size_t receive_some(void* target, size_t bytes) override;
  void shutdown() noexcept override;
  void release() noexcept override;
  size_t streams() const override { return carrying_.load(); }
  int fd() const override { return events_.get(); }
  Usage take_usage() noexcept override;

 private:
  struct Piece {
    FrameHeader header;
    bool first;  // of its chunk: the header goes ahead
    const void* data;
    uint64_t bytes;
    Patience patience;
  };
  struct Strand {  // one stream
    explicit Strand(UniqueFd fd) : socket(std::move(fd), TcpTransport::Slots::kZeroCopy) {}
    TcpTransport socket;
    std::optional<Piece> waiting;
    bool sending = false;
    std::condition_variable work;
    std::thread thread;
    size_t pending() const { return (sending ? 1u : 0u) + (waiting ? 1u : 0u); }
  };

  void run(size_t number) noexcept;
  void fail(size_t number, const Error& error) noexcept;
  size_t least_busy() const;  // under mutex_
  bool idle() const { return pending_ == 0; }  // under mutex_
  void begin_version(const FrameHeader& begin);
  void end_measurement();  // of the version whose BLOB was sent last, if there is one
  // Waits until `ready`, or throws: a stream failed, shutdown(), patience ended.
  template <class Ready>
  void await(std::unique_lock<std::mutex>& lock, Ready ready, const char* what, const Patience& patience);
  [[noreturn]] void raise_failure(std::unique_lock<std::mutex>& lock);

  std::vector<std::unique_ptr<Strand>> streams_;
  UniqueFd events_;  // epoll: stream 0 and failed_
  const Bell failed_;

  std::mutex mutex_;
  std::condition_variable room_;  // a stream took its waiting piece, is idle, or failed
  std::optional<Error> failure_;  // of the first stream that failed
  bool waited_ = false;           // for the peer's reason, once
  bool ending_ = false;
  size_t last_ = 0;     // stream that got the latest chunk
  size_t pending_ = 0;  // pieces that wait or are being sent, of all streams
  int64_t busy_since_ = 0, busy_ns_ = 0;  // while there are such pieces
  uint64_t cpu_ns_ = 0;  // of the streams' threads

  std::atomic<size_t> carrying_;  // streams that carry this version; changes between versions only

  // The using thread's own: what is measured of the version, and the frame that was started.
  StreamTuner tuner_;
  uint64_t measured_bytes_ = 0;
  bool held_back_ = false;  // chunks came in pieces
  int64_t blob_sent_ns_ = 0;  // 0: not yet, or its measurement is over
  FrameHeader header_{};
  bool chunk_ = false;
  bool first_ = false;
};

}  // namespace ff
