#include "transport/wire.h"

#include <cstddef>

#include "checksum/crc32c.h"

namespace ff {
namespace {

constexpr uint32_t kMagic = 0x31524646;  // "FFR1"

uint32_t crc_of(const FrameHeader& frame) {
  return crc32c(0, &frame, offsetof(FrameHeader, header_crc));
}

}  // namespace

const char* name_of(uint16_t type) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::kJournal:
      return "JOURNAL";
    case FrameType::kBegin:
      return "BEGIN";
    case FrameType::kChunk:
      return "CHUNK";
    case FrameType::kBlob:
      return "BLOB";
    case FrameType::kAck:
      return "ACK";
    case FrameType::kReject:
      return "REJECT";
    case FrameType::kAddress:
      return "ADDRESS";
  }
  return "unknown";
}

FrameHeader make_frame(FrameType type, uint32_t rank, uint64_t epoch, int64_t version) {
  FrameHeader frame{};
  frame.type = static_cast<uint16_t>(type);
  frame.rank = rank;
  frame.epoch = epoch;
  frame.version = version;
  return frame;
}

void seal_frame(FrameHeader& frame) {
  frame.magic = kMagic;
  frame.header_crc = crc_of(frame);
}

void check_frame(const FrameHeader& frame) {
  if (frame.magic != kMagic) raise(FF_EPROTO, "frame magic is %#x, expected %#x", frame.magic, kMagic);
  if (frame.header_crc != crc_of(frame)) raise(FF_EPROTO, "frame header's checksum does not match");
  if (frame.type < 1 || frame.type > 7) raise(FF_EPROTO, "frame type is %u, known are 1 to 7", frame.type);
}

void send_frame(Transport& transport, FrameHeader frame, const void* data, const Patience& patience) {
  seal_frame(frame);
  transport.start(frame, patience);
  if (frame.length > 0) transport.data(data, frame.length, patience);
}

}  // namespace ff
