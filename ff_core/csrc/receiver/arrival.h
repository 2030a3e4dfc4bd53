// The version that a connection is receiving: which of its chunks were claimed, and how many have landed. Shared by the
// threads of the connection's streams, which take chunks of one version in any order (docs/wire_format.md).
//
// A chunk is claimed before the first byte of its data is received or copied, by one thread only: so every byte of a slot
// has one writer. With a single stream chunks must come in order, and may land in any. Errors are FF_EPROTO unless they say otherwise.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "slots/layout.h"
#include "transport/wire.h"

namespace ff {

class Arrival {
 public:
  struct Version {
    uint32_t slot;
    int64_t version;
    bool checksummed;
  };

  Arrival(const Geometry& geometry, uint64_t epoch, size_t streams)
      : geometry_(geometry), epoch_(epoch), ordered_(streams == 1), awaited_(streams - 1, kNothing) {}

  // Stream 0: BEGIN, in this order. FF_EIO: another stream has ended.
  void expect_none(const FrameHeader& begin);
  void begin(const Version& version);
  // Any stream: a CHUNK's header is here; its data may be put into the slot. A further stream waits until the version it
  // names is the one arriving. FF_EIO: stop().
  Version claim(const FrameHeader& chunk, size_t stream);
  void landed();  // the data are in the slot, and match
  // Stream 0: BLOB is here; waits until all chunks have landed. FF_EIO: stop(). FF_EPROTO: nobody brings what is missing:
  // it was not claimed before, on a single stream; all further streams have gone on to later versions, and are not read.
  Version await_chunks(const FrameHeader& blob);
  void end();  // it is complete

  // The peer has closed a stream between two frames. FF_EIO: within a version, of which a further stream's end gives the
  // others a moment to bring the rest.
  void stream_ended(size_t stream);
  void stop() noexcept;  // ends all waiting, now and later

 private:
  void check_version(const FrameHeader& frame) const;  // under mutex_
  bool complete() const { return landed_ == geometry_.sent_chunks(); }
  bool all_gone_on() const;  // under mutex_
  bool nobody_brings_more() const;  // under mutex_

  static constexpr int64_t kNothing = -1;

  const Geometry& geometry_;
  const uint64_t epoch_;
  const bool ordered_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool arriving_ = false;
  Version version_{0, -1, false};  // the newest begun
  std::vector<bool> claimed_;
  uint32_t next_ = 0;  // claimed so far; in order, the next one's number
  uint32_t landed_ = 0;
  std::vector<int64_t> awaited_;  // by further stream: the version that its CHUNK names, for which it waits
  size_t ended_ = 0;  // a further stream that ended; 0: none
  bool stopped_ = false;
};

}  // namespace ff
