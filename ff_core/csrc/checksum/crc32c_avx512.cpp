// CRC32C by carry-less multiplication, 64 bytes at a time (VPCLMULQDQ on 512-bit registers): four accumulators take
// turns, each absorbing every fourth line. Folding a lane of 128 bits forward by D bytes multiplies its halves with
// x^(8D + 31) and x^(8D - 33) modulo the polynomial (the odd exponents: reflected factors of 64 bits give a product
// that is shifted by one, and the constants sit in the upper half). What is left at the end, 16 bytes that are
// congruent to all that went in, is reduced by the crc32 instruction. The fused copy stores each line as it folds it:
// one pass, front to back. Compiled through target attributes, chosen at run time: the library itself stays plain
// x86-64.
#include "checksum/crc32c.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#define FF_AVX512 __attribute__((target("avx512f,avx512vl,vpclmulqdq,pclmul,sse4.2")))

namespace ff {
namespace detail {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kStride = 4 * kLine;
constexpr size_t kPrefetch = 1024;
constexpr size_t kApart = 16 * 1024;

// x^exponent modulo the polynomial, reflected: x^0 is the top bit.
uint64_t power_of_x(unsigned exponent) {
  uint32_t value = 0x80000000u;
  for (; exponent > 0; --exponent) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0);
  return value;
}

struct FoldBy {
  explicit FoldBy(unsigned bytes) : low(power_of_x(8 * bytes + 31)), high(power_of_x(8 * bytes - 33)) {}
  uint64_t low, high;
};

struct Constants {
  FoldBy stride{kStride}, line{kLine}, lanes3{48}, lanes2{32}, lanes1{16};
  FoldBy apart1{kApart}, apart2{2 * kApart}, apart3{3 * kApart};
};

const Constants& constants() {
  static const Constants all;
  return all;
}

FF_AVX512 inline __m512i wide(const FoldBy& by) {
  const auto low = static_cast<long long>(by.low), high = static_cast<long long>(by.high);
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

// `sum` moved forward by what `by` stands for, plus `next`.
FF_AVX512 inline __m512i fold(__m512i sum, __m512i by, __m512i next) {
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, by, 0x00), _mm512_clmulepi64_epi128(sum, by, 0x11),
                                   next, kXorOfThree);
}

// The register of the checksum after the four accumulators, oldest first.
FF_AVX512 inline uint32_t reduce(__m512i a, __m512i b, __m512i c, __m512i d) {
  const Constants& k = constants();
  const __m512i line = wide(k.line);
  d = fold(fold(fold(a, line, b), line, c), line, d);
  // The last of the four lanes stays where it is, the others move up to it.
  const auto word = [](uint64_t value) { return static_cast<long long>(value); };
  const __m512i by = _mm512_set_epi64(0, 0, word(k.lanes1.high), word(k.lanes1.low), word(k.lanes2.high),
                                      word(k.lanes2.low), word(k.lanes3.high), word(k.lanes3.low));
  const __m512i last = _mm512_maskz_mov_epi64(0xC0, d);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, fold(d, by, last));
  uint64_t crc = _mm_crc32_u64(0, lanes[0] ^ lanes[2] ^ lanes[4] ^ lanes[6]);
  crc = _mm_crc32_u64(crc, lanes[1] ^ lanes[3] ^ lanes[5] ^ lanes[7]);
  return static_cast<uint32_t>(crc);
}

FF_AVX512 inline __m512i load(const uint8_t* from) {
  return _mm512_loadu_si512(from);
}

// A line on its way from source to (aligned) target.
FF_AVX512 inline __m512i pass(uint8_t* to, const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);  // behind the end it does nothing
  __m512i line = _mm512_loadu_si512(from);
  asm("" : "+v"(line));  // one load for the store and for the checksum, also where the source changes in between
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
  return line;
}

FF_AVX512 inline __m512i seeded(uint32_t crc, __m512i line) {
  return _mm512_xor_si512(line, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
}

// Non-temporal stores want whole, aligned cache lines: the bytes before the first one go ahead.
FF_AVX512 inline uint32_t align(uint32_t crc, uint8_t** to, const uint8_t** from, size_t* bytes) {
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(*to) % kLine) % kLine;
  if (head == 0) return crc;
  std::memcpy(*to, *from, head);
  crc = crc32c_sse42(crc, *from, head);
  *to += head;
  *from += head;
  *bytes -= head;
  return crc;
}

}  // namespace

bool crc32c_avx512_available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul") && crc32c_sse42_available();
}

FF_AVX512 uint32_t crc32c_avx512(uint32_t start, const void* data, size_t bytes) {
  if (bytes < 2 * kStride) return crc32c_sse42(start, data, bytes);
  const auto* p = static_cast<const uint8_t*>(data);
  const __m512i by = wide(constants().stride);
  __m512i a = seeded(~start, load(p)), b = load(p + kLine), c = load(p + 2 * kLine), d = load(p + 3 * kLine);
  for (p += kStride, bytes -= kStride; bytes >= kStride; p += kStride, bytes -= kStride) {
    a = fold(a, by, load(p));
    b = fold(b, by, load(p + kLine));
    c = fold(c, by, load(p + 2 * kLine));
    d = fold(d, by, load(p + 3 * kLine));
  }
  return crc32c_sse42(~reduce(a, b, c, d), p, bytes);
}

FF_AVX512 uint32_t copy_crc32c_avx512(uint32_t crc, void* target, const void* source, size_t bytes) {
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  if (bytes >= 2 * kStride + kLine) {
    crc = align(crc, &to, &from, &bytes);
    const __m512i by = wide(constants().stride);
    __m512i a = seeded(~crc, pass(to, from)), b = pass(to + kLine, from + kLine);
    __m512i c = pass(to + 2 * kLine, from + 2 * kLine), d = pass(to + 3 * kLine, from + 3 * kLine);
    for (to += kStride, from += kStride, bytes -= kStride; bytes >= kStride;
         to += kStride, from += kStride, bytes -= kStride) {
      a = fold(a, by, pass(to, from));
      b = fold(b, by, pass(to + kLine, from + kLine));
      c = fold(c, by, pass(to + 2 * kLine, from + 2 * kLine));
      d = fold(d, by, pass(to + 3 * kLine, from + 3 * kLine));
    }
    crc = ~reduce(a, b, c, d);
  }
  return copy_crc32c_sse42(crc, to, from, bytes);
}

// Four accumulators, each with a quarter of the block of its own, which are put together at the block's end.
FF_AVX512 uint32_t copy_crc32c_avx512_apart(uint32_t crc, void* target, const void* source, size_t bytes) {
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  if (bytes >= 4 * kApart + kLine) {
    crc = align(crc, &to, &from, &bytes);
    const Constants& k = constants();
    const __m512i line = wide(k.line), by1 = wide(k.apart1), by2 = wide(k.apart2), by3 = wide(k.apart3);
    const auto each = [&](size_t at) FF_AVX512 { return pass(to + at, from + at); };
    __m512i a = seeded(~crc, each(0));
    for (;;) {
      __m512i b = each(kApart), c = each(2 * kApart), d = each(3 * kApart);
      for (size_t at = kLine; at < kApart; at += kLine) {
        a = fold(a, line, each(at));
        b = fold(b, line, each(at + kApart));
        c = fold(c, line, each(at + 2 * kApart));
        d = fold(d, line, each(at + 3 * kApart));
      }
      a = fold(a, by3, fold(b, by2, fold(c, by1, d)));
      to += 4 * kApart;
      from += 4 * kApart;
      bytes -= 4 * kApart;
      if (bytes < 4 * kApart) break;
      a = fold(a, line, each(0));
    }
    const __m512i none = _mm512_setzero_si512();
    crc = ~reduce(none, none, none, a);
  }
  return copy_crc32c_avx512(crc, to, from, bytes);
}

}  // namespace detail
}  // namespace ff

#else  // not x86-64: never chosen

namespace ff {
namespace detail {
bool crc32c_avx512_available() {
  return false;
}
uint32_t crc32c_avx512(uint32_t crc, const void* data, size_t bytes) {
  return crc32c_portable(crc, data, bytes);
}
uint32_t copy_crc32c_avx512(uint32_t crc, void* target, const void* source, size_t bytes) {
  return copy_crc32c_portable(crc, target, source, bytes);
}
uint32_t copy_crc32c_avx512_apart(uint32_t crc, void* target, const void* source, size_t bytes) {
  return copy_crc32c_portable(crc, target, source, bytes);
}
}  // namespace detail
}  // namespace ff
#endif
