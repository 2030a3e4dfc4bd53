// Frames on a replication connection: a fixed header, then `length` bytes. docs/wire_format.md describes the
// conversation.
#pragma once
#include <cstdint>
#include <string>

#include "transport/transport.h"

namespace ff {

enum class FrameType : uint16_t { kJournal = 1, kBegin = 2, kChunk = 3, kBlob = 4, kAck = 5, kReject = 6, kAddress = 7 };
const char* name_of(uint16_t type);

struct FrameHeader {  // little-endian, no padding
  uint32_t magic;
  uint16_t type;
  uint16_t flags;     // kBegin: kChecksummed; otherwise 0
  uint32_t rank;      // whose state
  uint32_t data_crc;  // CRC32C of the bytes that follow (0 if the version is not checksummed)
  uint64_t epoch;
  int64_t version;      // kJournal: -1
  uint64_t index;       // kChunk: chunk number; otherwise 0
  uint64_t length;      // of the bytes that follow
  uint32_t reserved;    // 0
  uint32_t header_crc;  // of all before
};
static_assert(sizeof(FrameHeader) == 56, "the header's bytes are part of the protocol");

struct BeginBody {  // what follows kBegin: both sides must agree
  uint64_t sent_bytes;
  uint64_t chunk_bytes;
};
static_assert(sizeof(BeginBody) == 16, "the body's bytes are part of the protocol");

constexpr uint64_t kMaxRejectText = 160;

FrameHeader make_frame(FrameType type, uint32_t rank, uint64_t epoch, int64_t version);
void seal_frame(FrameHeader& frame);         // fills in magic and header_crc
void check_frame(const FrameHeader& frame);  // FF_EPROTO: magic, checksum, type

// Header and data in one go; data's checksum must be in the frame already.
void send_frame(Transport& transport, FrameHeader frame, const void* data, const Patience& patience);

}  // namespace ff
