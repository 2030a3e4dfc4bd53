#include "transport/shm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

namespace ff {
namespace {

using ull = unsigned long long;

bool is_chunk(const FrameHeader& header) {
  return header.type == static_cast<uint16_t>(FrameType::kChunk) && header.length > 0;
}

}  // namespace

SharedFile::SharedFile(const UniqueFd& file) : base_(nullptr), bytes_(0) {
  const int seals = ::fcntl(file.get(), F_GET_SEALS);
  if (seals < 0) raise(FF_EINVAL, "descriptor %d is not a memory file", file.get());
  if (!(seals & F_SEAL_SHRINK)) raise(FF_EINVAL, "memory file %d can shrink: it must be sealed", file.get());
  struct stat status;
  if (::fstat(file.get(), &status) != 0) raise_errno(errno, "fstat of descriptor %d", file.get());
  bytes_ = static_cast<uint64_t>(status.st_size);
  if (bytes_ == 0) raise(FF_EINVAL, "memory file %d is empty", file.get());
  void* base = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (base == MAP_FAILED) raise_errno(errno, "mapping of a peer's memory file");
  base_ = static_cast<const uint8_t*>(base);
}

SharedFile::~SharedFile() {
  ::munmap(const_cast<uint8_t*>(base_), bytes_);
}

const uint8_t* SharedFile::at(uint64_t offset, uint64_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    raise(FF_EPROTO, "CHUNK of %llu bytes at offset %llu of a memory file of %llu", ull{bytes}, ull{offset},
          ull{bytes_});
  }
  return base_ + offset;
}

void ShmSender::start(const FrameHeader& header, const Patience& patience) {
  missing_ = is_chunk(header) ? header.length : 0;
  if (missing_ > 0) {
    chunk_ = header;
  } else {
    TcpTransport::start(header, patience);
  }
}

void ShmSender::data(const void* piece, uint64_t bytes, const Patience& patience) {
  if (missing_ == 0) {
    TcpTransport::data(piece, bytes, patience);
    return;
  }
  // Pieces follow one another in memory, so that the last one's end tells where all of them lie. That a CHUNK leaves
  // with its last piece keeps to the pacer's times, and to itself what the sender has not checked yet.
  missing_ -= std::min(bytes, missing_);
  if (missing_ > 0) return;
  const uint8_t* end = static_cast<const uint8_t*>(piece) + bytes;
  const auto offset = static_cast<uint64_t>(end - chunk_.length - base_);
  TcpTransport::start(chunk_, patience);
  TcpTransport::data(&offset, sizeof offset, patience);
}

bool ShmReceiver::next(FrameHeader* header) {
  if (!TcpTransport::next(header)) return false;
  chunk_ = is_chunk(*header);
  return true;
}

const uint8_t* ShmReceiver::lend(uint64_t bytes) {
  if (!chunk_) return nullptr;
  uint64_t offset;
  take(&offset, sizeof offset, false);
  return peers_.at(offset, bytes);
}

}  // namespace ff
