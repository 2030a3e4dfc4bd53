// A transport carries frames (docs/wire_format.md) between two processes: one connection, both directions.
//
// What a transport decides is how a frame's data gets from memory here to memory there; what frames mean is not its
// business. One thread sends and one receives (or one does both); shutdown() may come from any thread and ends what
// they wait for. Errors are FF_EIO (broken or closed), FF_ETIMEOUT (patience ended), FF_EPROTO (no frame of ours).
//
//   sender      connect() once; start(header), then data() in as many pieces as one likes until header.length is reached
//   receiver    next(header), then lend() or take(target) if header.length > 0
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/fd.h"

namespace ff {

struct FrameHeader;

// How long a transfer may take. stall_ms: without a single byte moving; end: altogether.
struct Patience {
  int64_t stall_ms;
  Deadline end;
};

class Transport {
 public:
  virtual ~Transport() = default;
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  virtual const char* name() const = 0;  // as in the configuration's `transport`

  // A sender's first call: may wait for the peer, until shutdown(). FF_ETRANSPORT: the two cannot do it this way.
  virtual void connect() {}
  // The header must be sealed.
  virtual void start(const FrameHeader& header, const Patience& patience) = 0;
  virtual void data(const void* piece, uint64_t bytes, const Patience& patience) = 0;

  // Waits without limit. False: the peer closed between two frames.
  virtual bool next(FrameHeader* header) = 0;
  // The data of the frame that next() gave, `bytes` of it being all; returns their CRC32C, 0 if not asked for.
  virtual uint32_t take(void* target, uint64_t bytes, bool checksum) = 0;
  // Instead of take(), first: where these data lie in memory that the peer may still change, valid until the end.
  // Whoever copies them leaves the connection alone, so that others may go on with it. Null: nowhere, take() them.
  virtual const uint8_t* lend(uint64_t bytes) {
    (void)bytes;
    return nullptr;
  }
  // What has arrived of small answers (ACK, REJECT), headers included, at most `bytes`; 0: nothing yet.
  virtual size_t receive_some(void* target, size_t bytes) = 0;

  virtual void shutdown() noexcept = 0;
  // The using thread's last call: afterwards nothing of the transport reads or writes what it was given.
  virtual void release() noexcept {}
  // Since the last call. cpu_ns: of its own threads.  zero_copy_bytes: that left without the kernel's copying them.
  struct Usage {
    uint64_t cpu_ns = 0;
    uint64_t zero_copy_bytes = 0;
  };
  virtual Usage take_usage() noexcept { return {}; }
  // A sender's: that carry what is sent now; several checks of what is to be sent keep up with them.
  virtual size_t streams() const { return 1; }
  virtual int fd() const = 0;  // becomes readable when receive_some() has something, or the connection ends
};

// The streams of one connection, as its receiver sees them; stream 0 first.
using Streams = std::vector<std::unique_ptr<Transport>>;

}  // namespace ff
