// CRC32C (Castagnoli, reflected, as in iSCSI and ext4), alone and fused with a copy.
//
// All functions chain: crc32c(crc32c(0, a), b) is the checksum of a followed by b. crc32c(0, "123456789") is
// 0xE3069283. The fused copy reads every source byte once and writes it with non-temporal stores, so that a copy of a
// rank's state does not push the training's data out of the caches.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ff {

uint32_t crc32c(uint32_t crc, const void* data, size_t bytes);

// Copies `bytes` from source to target (no overlap, any alignment) and returns the chained checksum of the bytes.
// The stores are weakly ordered: call publish_stores() before telling another thread.
uint32_t copy_crc32c(uint32_t crc, void* target, const void* source, size_t bytes);

// The same of a source that somebody else may change meanwhile: the checksum is of what lies at the target, whatever
// that is, as long as nobody writes there.
uint32_t copy_crc32c_of_shared(uint32_t crc, void* target, const void* source, size_t bytes);

// Orders the stores of copy_crc32c and copy_crc32c_of_shared before later ones.
void publish_stores();

// "vpclmulqdq", "sse4.2" or "portable".
const char* crc32c_implementation();

namespace detail {

// Multiplication by x^(8 * bytes) in the checksum's field: what `bytes` zero bytes do to a checksum's register.
struct ZerosOperator {
  explicit ZerosOperator(size_t bytes);
  uint32_t apply(uint32_t crc) const {
    return table[0][crc & 255] ^ table[1][(crc >> 8) & 255] ^ table[2][(crc >> 16) & 255] ^ table[3][crc >> 24];
  }
  uint32_t table[4][256];
};

// copy_crc32c_of_shared by one implementation. copy: the fused copy if it loads every byte of whole blocks of
// kSharedBlock, at an aligned target, only once; null: it may load one twice.
struct SharedCopy {
  static constexpr size_t kSharedBlock = 64 * 1024;
  uint32_t (*checksum)(uint32_t crc, const void* data, size_t bytes);
  uint32_t (*copy)(uint32_t crc, void* target, const void* source, size_t bytes);
  uint32_t operator()(uint32_t crc, void* target, const void* source, size_t bytes) const;
};

uint32_t crc32c_portable(uint32_t crc, const void* data, size_t bytes);
uint32_t copy_crc32c_portable(uint32_t crc, void* target, const void* source, size_t bytes);
bool crc32c_sse42_available();
uint32_t crc32c_sse42(uint32_t crc, const void* data, size_t bytes);
uint32_t copy_crc32c_sse42(uint32_t crc, void* target, const void* source, size_t bytes);
bool crc32c_avx512_available();  // only where crc32c_sse42_available()
uint32_t crc32c_avx512(uint32_t crc, const void* data, size_t bytes);
uint32_t copy_crc32c_avx512(uint32_t crc, void* target, const void* source, size_t bytes);
// The same at four places at a time, 16 KiB apart: faster where one front does not keep the memory busy.
uint32_t copy_crc32c_avx512_apart(uint32_t crc, void* target, const void* source, size_t bytes);

}  // namespace detail
}  // namespace ff
