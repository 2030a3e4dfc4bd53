// CRC32C with the x86 instruction. One crc32q has a latency of three cycles and a throughput of one: three streams over
// the thirds of a block keep it busy, and their registers are joined by a multiplication with x^(8 * third). The fused
// copy is a pipeline: while block k + 1 is copied, front to back (what prefetchers and write-combining buffers like
// best: three copy streams at once are slower than memcpy), block k is checksummed out of the first-level cache.
// Compiled through target attributes, chosen at run time: the library itself stays plain x86-64.
#include "checksum/crc32c.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#include <nmmintrin.h>

#include <cstring>

#define FF_SSE42 __attribute__((target("sse4.2")))

namespace ff {

void publish_stores() {
  _mm_sfence();
}

namespace detail {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kThird = 1344;  // 21 lines; a block of three is about a page, two blocks fit the first-level cache
constexpr size_t kBlock = 3 * kThird;
constexpr size_t kShortThird = 128;  // for what is left after the last block
constexpr size_t kPrefetch = 1024;

inline uint64_t load8(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

inline void copy_line(uint8_t* to, const uint8_t* from) {
  const auto* source = reinterpret_cast<const __m128i*>(from);
  auto* target = reinterpret_cast<__m128i*>(to);
  _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);  // behind the end it does nothing
  const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
  const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
  _mm_stream_si128(target, a);
  _mm_stream_si128(target + 1, b);
  _mm_stream_si128(target + 2, c);
  _mm_stream_si128(target + 3, d);
}

// What is done beside the checksum of a block: nothing; fetching the next block into the cache; copying it.
struct Nothing {
  void operator()(size_t) const {}
};

struct FetchAhead {
  const uint8_t* from;
  void operator()(size_t line) const {
    for (size_t i = 3 * line; i < 3 * line + 3 * kLine; i += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(from) + i, _MM_HINT_T0);  // behind the end it does nothing
    }
  }
};

struct CopyAhead {
  uint8_t* to;
  const uint8_t* from;
  void operator()(size_t line) const {
    for (size_t i = 3 * line; i < 3 * line + 3 * kLine; i += kLine) copy_line(to + i, from + i);
  }
};

// Checksums a block of three thirds; calls `beside(i)` once per line i of a third.
template <size_t Third, class Beside>
FF_SSE42 inline uint64_t checksum_block(uint64_t crc, const uint8_t* p, const ZerosOperator& join,
                                        const Beside& beside) {
  uint64_t crc1 = 0, crc2 = 0;
  for (size_t i = 0; i < Third; i += kLine) {
    beside(i);
#pragma GCC unroll 8
    for (size_t j = i; j < i + kLine; j += 8) {
      crc = _mm_crc32_u64(crc, load8(p + j));
      crc1 = _mm_crc32_u64(crc1, load8(p + Third + j));
      crc2 = _mm_crc32_u64(crc2, load8(p + 2 * Third + j));
    }
  }
  crc = join.apply(static_cast<uint32_t>(crc)) ^ crc1;
  return join.apply(static_cast<uint32_t>(crc)) ^ crc2;
}

const ZerosOperator& join_thirds() {
  static const ZerosOperator join(kThird);
  return join;
}

// Less than a block, or any length, slower.
FF_SSE42 uint64_t checksum_rest(uint64_t crc, const uint8_t* p, size_t bytes) {
  static const ZerosOperator join(kShortThird);
  for (; bytes >= 3 * kShortThird; bytes -= 3 * kShortThird, p += 3 * kShortThird) {
    crc = checksum_block<kShortThird>(crc, p, join, Nothing());
  }
  for (; bytes >= 8; bytes -= 8, p += 8) crc = _mm_crc32_u64(crc, load8(p));
  for (; bytes > 0; --bytes, ++p) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *p);
  return crc;
}

}  // namespace

bool crc32c_sse42_available() {
  return __builtin_cpu_supports("sse4.2");
}

FF_SSE42 uint32_t crc32c_sse42(uint32_t start, const void* data, size_t bytes) {
  const ZerosOperator& join = join_thirds();
  const auto* p = static_cast<const uint8_t*>(data);
  uint64_t crc = ~start;
  for (; bytes >= kBlock; bytes -= kBlock, p += kBlock)
    crc = checksum_block<kThird>(crc, p, join, FetchAhead{p + kBlock});
  return ~static_cast<uint32_t>(checksum_rest(crc, p, bytes));
}

FF_SSE42 uint32_t copy_crc32c_sse42(uint32_t start, void* target, const void* source, size_t bytes) {
  const ZerosOperator& join = join_thirds();
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  uint64_t crc = ~start;
  if (bytes >= kBlock + kLine) {
    // Non-temporal stores want whole, aligned cache lines.
    const size_t head = (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine;
    if (head > 0) {
      std::memcpy(to, from, head);
      crc = checksum_rest(crc, from, head);
    }
    to += head;
    from += head;
    bytes -= head;
    for (size_t i = 0; i < kBlock; i += kLine) copy_line(to + i, from + i);
    for (; bytes >= 2 * kBlock; bytes -= kBlock, to += kBlock, from += kBlock) {
      crc = checksum_block<kThird>(crc, from, join, CopyAhead{to + kBlock, from + kBlock});
    }
    crc = checksum_block<kThird>(crc, from, join, Nothing());
    to += kBlock;
    from += kBlock;
    bytes -= kBlock;
  }
  if (bytes > 0) std::memcpy(to, from, bytes);
  return ~static_cast<uint32_t>(checksum_rest(crc, from, bytes));
}

}  // namespace detail
}  // namespace ff

#else  // not x86-64: the portable code serves

namespace ff {
void publish_stores() {}  // no non-temporal stores here
namespace detail {
bool crc32c_sse42_available() {
  return false;
}
uint32_t crc32c_sse42(uint32_t crc, const void* data, size_t bytes) {
  return crc32c_portable(crc, data, bytes);
}
uint32_t copy_crc32c_sse42(uint32_t crc, void* target, const void* source, size_t bytes) {
  return copy_crc32c_portable(crc, target, source, bytes);
}
}  // namespace detail
}  // namespace ff
#endif
