// An arena is one rank's slots and init journal in one memory file. ArenaView looks at a mapped one; it owns nothing.
#pragma once
#include <cstdint>
#include <vector>

#include "slots/layout.h"

namespace ff {

class ArenaView {
 public:
  // Checks the header: FF_ECORRUPT if `base` is not an arena of `bytes` bytes.
  ArenaView(void* base, uint64_t bytes);
  // Trusts the size that the header states: for callers that only have the address.
  static ArenaView of(const void* base);
  static void format(void* base, uint64_t bytes, const ff_arena_layout& layout);

  const Geometry& geometry() const { return geometry_; }
  const ff_arena_layout& layout() const { return geometry_.layout(); }
  uint8_t* at(uint64_t offset) const { return base_ + offset; }

 private:
  uint8_t* base_;
  Geometry geometry_;
};

// The init journal, in two copies: a process that dies while writing one leaves the other. Copies carry a sequence
// number; the newest whole copy counts.
class JournalView {
 public:
  explicit JournalView(const ArenaView& arena) : arena_(arena) {}
  void set(const void* data, uint64_t bytes);  // FF_ENOSPACE beyond the capacity
  struct Content {
    const uint8_t* data;
    uint64_t bytes;     // 0: none yet
    uint64_t sequence;  // grows with every set()
  };
  uint64_t sequence() const;  // of get(), without a look at the content: with every version
  Content get() const;  // FF_ECORRUPT
  std::vector<uint8_t> copy(uint64_t* sequence) const;

 private:
  const ArenaView& arena_;
};

}  // namespace ff
