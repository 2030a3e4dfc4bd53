// CRC32C with the x86 instruction. One crc32q has a latency of three cycles and a throughput of one: three interleaved
// streams over neighbouring blocks keep it busy, and their registers are joined by a multiplication with x^(8 * block).
// Compiled through target attributes, chosen at run time: the library itself stays plain x86-64.
#include "crc32c.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#include <nmmintrin.h>

#include <cstring>

#define FF_SSE42 __attribute__((target("sse4.2")))

namespace ff {

void publish_stores() { _mm_sfence(); }

namespace detail {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kLong = 8192;  // bytes per stream: long enough to make joining free
constexpr size_t kShort = 256;

inline uint64_t load8(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

template <bool Copy>
FF_SSE42 inline void line(uint64_t& crc0, uint64_t& crc1, uint64_t& crc2, uint8_t* to, const uint8_t* from, size_t stride) {
  if (Copy) {
    for (int stream = 0; stream < 3; ++stream) {
      const auto* source = reinterpret_cast<const __m128i*>(from + stream * stride);
      auto* target = reinterpret_cast<__m128i*>(to + stream * stride);
      const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
      const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < kLine; i += 8) {
    crc0 = _mm_crc32_u64(crc0, load8(from + i));
    crc1 = _mm_crc32_u64(crc1, load8(from + stride + i));
    crc2 = _mm_crc32_u64(crc2, load8(from + 2 * stride + i));
  }
}

// Three streams of `stride` bytes each; `to` is 64-byte aligned when Copy.
template <bool Copy>
FF_SSE42 uint64_t triple(uint64_t crc, uint8_t* to, const uint8_t* from, size_t stride, const ZerosOperator& join) {
  uint64_t crc1 = 0, crc2 = 0;
  for (size_t i = 0; i < stride; i += kLine) line<Copy>(crc, crc1, crc2, Copy ? to + i : nullptr, from + i, stride);
  crc = join.apply(static_cast<uint32_t>(crc)) ^ crc1;
  return join.apply(static_cast<uint32_t>(crc)) ^ crc2;
}

FF_SSE42 uint64_t tail(uint64_t crc, const uint8_t* p, size_t bytes) {
  for (; bytes >= 8; bytes -= 8, p += 8) crc = _mm_crc32_u64(crc, load8(p));
  for (; bytes > 0; --bytes, ++p) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *p);
  return crc;
}

template <bool Copy>
FF_SSE42 uint32_t run(uint32_t start, uint8_t* to, const uint8_t* from, size_t bytes) {
  static const ZerosOperator join_long(kLong), join_short(kShort);
  uint64_t crc = ~start;
  if (Copy && bytes >= 3 * kShort) {  // non-temporal stores want whole, aligned cache lines
    const size_t head = (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine;
    std::memcpy(to, from, head);
    crc = tail(crc, from, head);
    to += head;
    from += head;
    bytes -= head;
  }
  for (; bytes >= 3 * kLong; bytes -= 3 * kLong, from += 3 * kLong) {
    crc = triple<Copy>(crc, to, from, kLong, join_long);
    if (Copy) to += 3 * kLong;
  }
  for (; bytes >= 3 * kShort; bytes -= 3 * kShort, from += 3 * kShort) {
    crc = triple<Copy>(crc, to, from, kShort, join_short);
    if (Copy) to += 3 * kShort;
  }
  if (Copy) std::memcpy(to, from, bytes);
  return ~static_cast<uint32_t>(tail(crc, from, bytes));
}

}  // namespace

bool crc32c_sse42_available() { return __builtin_cpu_supports("sse4.2"); }

uint32_t crc32c_sse42(uint32_t crc, const void* data, size_t bytes) {
  return run<false>(crc, nullptr, static_cast<const uint8_t*>(data), bytes);
}

uint32_t copy_crc32c_sse42(uint32_t crc, void* target, const void* source, size_t bytes) {
  return run<true>(crc, static_cast<uint8_t*>(target), static_cast<const uint8_t*>(source), bytes);
}

}  // namespace detail
}  // namespace ff

#else  // not x86-64: the portable code serves

namespace ff {
void publish_stores() {}  // no non-temporal stores here
namespace detail {
bool crc32c_sse42_available() { return false; }
uint32_t crc32c_sse42(uint32_t crc, const void* data, size_t bytes) { return crc32c_portable(crc, data, bytes); }
uint32_t copy_crc32c_sse42(uint32_t crc, void* target, const void* source, size_t bytes) {
  return copy_crc32c(crc, target, source, bytes);
}
}  // namespace detail
}  // namespace ff
#endif
