// Shared memory between processes of one host: the receiver copies chunks out of the sender's own memory file.
//
// A Unix stream socket carries the frames as TCP would, but a CHUNK's data stay where they are: eight bytes, their
// offset in the sender's memory file, follow its header (docs/wire_format.md). The receiver maps that file, for
// reading only, and lends its threads what lies there: they copy it into the slot, the one time that the bytes are
// moved; the sender's processor does not touch them. The checksum is of what the slot then holds. A sender may change
// its memory meanwhile: it was cancelled, and the connection is about to close. Then the checksum does not match, and
// nothing worse happens. The file must be sealed against shrinking: reading behind its end would kill the receiver.
#pragma once
#include "transport/tcp.h"

namespace ff {

// A peer's memory file, mapped for reading.
class SharedFile {
 public:
  explicit SharedFile(const UniqueFd& file);  // FF_EINVAL: no memory file, or one that can shrink
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;
  const uint8_t* at(uint64_t offset, uint64_t bytes) const;  // FF_EPROTO: not within the file

 private:
  const uint8_t* base_;
  uint64_t bytes_;
};

// Chunks lie in the file mapped at `base`, which the receiver has got as well.
class ShmSender final : public TcpTransport {
 public:
  ShmSender(UniqueFd socket, const void* base)
      : TcpTransport(std::move(socket)), base_(static_cast<const uint8_t*>(base)) {}

  const char* name() const override { return "shm"; }
  void start(const FrameHeader& header, const Patience& patience) override;
  void data(const void* piece, uint64_t bytes, const Patience& patience) override;

 private:
  const uint8_t* const base_;
  FrameHeader chunk_{};   // started; sent with its last piece
  uint64_t missing_ = 0;  // bytes of it
};

class ShmReceiver final : public TcpTransport {
 public:
  ShmReceiver(UniqueFd socket, const UniqueFd& peers_file) : TcpTransport(std::move(socket)), peers_(peers_file) {}

  const char* name() const override { return "shm"; }
  bool next(FrameHeader* header) override;
  const uint8_t* lend(uint64_t bytes) override;

 private:
  const SharedFile peers_;
  bool chunk_ = false;  // next() gave one
};

}  // namespace ff
