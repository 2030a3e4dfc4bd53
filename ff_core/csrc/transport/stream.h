// A connected stream socket (TCP or AF_UNIX) that the engine owns. Sends and receives are blocking; shutdown() from
// another thread ends them at once. Every socket call of the engine is in here.
#pragma once
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/fd.h"
#include "transport/transport.h"
#include "transport/zero_copy.h"

namespace ff {

class Stream {
 public:
  explicit Stream(UniqueFd fd);  // FF_EIO, FF_EINVAL: not a connected stream socket
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // What the kernel may do with memory that is to be sent. kStays: nobody writes it before the peer has it, and if
  // somebody does after all (the connection has ended, its last bytes are on their way), a checksum shows it.
  enum class Memory { kMayChange, kStays };

  // All bytes of all parts; the array is used up. more: another send follows at once. FF_EIO: broken; FF_ETIMEOUT:
  // patience ended.
  void send(iovec* parts, int count, const Patience& patience, Memory memory = Memory::kMayChange, bool more = false);
  // Exactly `bytes`. Returns false if the peer closed before the first; FF_EIO if it closed in between. Waits without
  // limit: the owner ends the wait with shutdown().
  bool receive(void* data, size_t bytes);
  // What is there, at most `bytes`; 0: nothing yet. FF_EIO: closed or broken.
  size_t receive_some(void* data, size_t bytes);
  void shutdown() noexcept;
  ZeroCopy& zero_copy() { return zero_copy_; }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  ZeroCopy zero_copy_;
};

// In a child process made by fork, engine threads do not exist and its copies of the sockets would keep the peers from
// noticing the parent's death: Streams register here, and a pthread_atfork handler closes them in the child.
namespace forked {
void remember(int fd);
void forget(int fd);
}  // namespace forked

}  // namespace ff
