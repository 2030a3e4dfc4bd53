#include "checksum/crc32c.h"

#include <cstring>

#include "ff_engine.h"

namespace ff {
namespace detail {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;  // reflected

// One step of the register by a zero bit, as a 32 x 32 matrix over GF(2): column i is the image of bit i.
struct Matrix {
  uint32_t column[32];
  uint32_t times(uint32_t vector) const {
    uint32_t sum = 0;
    for (int i = 0; vector != 0; vector >>= 1, ++i) {
      if (vector & 1) sum ^= column[i];
    }
    return sum;
  }
  Matrix squared() const {
    Matrix result{};
    for (int i = 0; i < 32; ++i) result.column[i] = times(column[i]);
    return result;
  }
};

// Slicing by 8: table[k][b] is the register after byte b and k zero bytes.
struct SlicingTables {
  SlicingTables() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
      table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; ++byte) {
      for (int k = 1; k < 8; ++k) table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 255];
    }
  }
  uint32_t table[8][256];
};

}  // namespace

ZerosOperator::ZerosOperator(size_t bytes) : table{} {
  Matrix power{};  // by one zero bit, then squared to 2, 4, 8... bits
  power.column[0] = kPolynomial;
  for (int i = 1; i < 32; ++i) power.column[i] = 1u << (i - 1);
  Matrix total{};
  for (int i = 0; i < 32; ++i) total.column[i] = 1u << i;
  for (uint64_t bits = uint64_t{bytes} * 8; bits != 0; bits >>= 1) {
    if (bits & 1) {
      for (uint32_t& column : total.column) column = power.times(column);
    }
    power = power.squared();
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (int k = 0; k < 4; ++k) table[k][byte] = total.times(byte << (8 * k));
  }
}

uint32_t crc32c_portable(uint32_t crc, const void* data, size_t bytes) {
  static const SlicingTables tables;
  const auto& t = tables.table;
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    word ^= crc;
    crc = t[7][word & 255] ^ t[6][(word >> 8) & 255] ^ t[5][(word >> 16) & 255] ^ t[4][(word >> 24) & 255] ^
          t[3][(word >> 32) & 255] ^ t[2][(word >> 40) & 255] ^ t[1][(word >> 48) & 255] ^ t[0][word >> 56];
  }
  for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ t[0][(crc ^ *p) & 255];
  return ~crc;
}

uint32_t copy_crc32c_portable(uint32_t crc, void* target, const void* source, size_t bytes) {
  // In blocks that stay in the first-level cache between copy and checksum.
  constexpr size_t kBlock = 16384;
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  while (bytes > 0) {
    const size_t block = bytes < kBlock ? bytes : kBlock;
    std::memcpy(to, from, block);
    crc = crc32c_portable(crc, to, block);
    to += block;
    from += block;
    bytes -= block;
  }
  return crc;
}

uint32_t SharedCopy::operator()(uint32_t crc, void* target, const void* source, size_t bytes) const {
  constexpr size_t kLine = 64;
  constexpr size_t kPiece = 256 * 1024;  // stays in the second-level cache between copy and checksum
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  const auto plain = [&](size_t count) {
    while (count > 0) {
      const size_t piece = count < kPiece ? count : kPiece;
      std::memcpy(to, from, piece);
      crc = checksum(crc, to, piece);
      to += piece;
      from += piece;
      bytes -= piece;
      count -= piece;
    }
  };
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine;
  if (copy != nullptr && bytes >= head + 2 * kSharedBlock) {
    plain(head);
    const size_t whole = bytes - bytes % kSharedBlock;
    crc = copy(crc, to, from, whole);
    to += whole;
    from += whole;
    bytes -= whole;
  }
  plain(bytes);
  return crc;
}

}  // namespace detail

namespace {

struct Implementation {
  const char* name;
  uint32_t (*checksum)(uint32_t crc, const void* data, size_t bytes);
  uint32_t (*copy)(uint32_t crc, void* target, const void* source, size_t bytes);
  detail::SharedCopy of_shared;
};

// Over memcpy of 200 MB, one front and four: 0.90 and 1.09 on an Intel Xeon (Sapphire Rapids or later), 1.59 and 1.30
// on an AMD EPYC. See docs/benchmarks.md.
bool intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

const Implementation& chosen() {
  static const Implementation best = [] {
    const auto wide = intel() ? detail::copy_crc32c_avx512_apart : detail::copy_crc32c_avx512;
    if (detail::crc32c_avx512_available())
      return Implementation{"vpclmulqdq", detail::crc32c_avx512, wide, {detail::crc32c_avx512, wide}};
    if (detail::crc32c_sse42_available())  // its copy loads the bytes again for the checksum
      return Implementation{"sse4.2", detail::crc32c_sse42, detail::copy_crc32c_sse42, {detail::crc32c_sse42, nullptr}};
    return Implementation{
        "portable", detail::crc32c_portable, detail::copy_crc32c_portable, {detail::crc32c_portable, nullptr}};
  }();
  return best;
}

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) {
  return chosen().checksum(crc, data, bytes);
}

uint32_t copy_crc32c(uint32_t crc, void* target, const void* source, size_t bytes) {
  return chosen().copy(crc, target, source, bytes);
}

uint32_t copy_crc32c_of_shared(uint32_t crc, void* target, const void* source, size_t bytes) {
  return chosen().of_shared(crc, target, source, bytes);
}

const char* crc32c_implementation() {
  return chosen().name;
}

}  // namespace ff

extern "C" uint32_t ff_crc32c(uint32_t crc, const void* data, size_t bytes) {
  return ff::crc32c(crc, data, bytes);
}
