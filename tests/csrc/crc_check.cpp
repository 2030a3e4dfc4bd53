// Compares all implementations of the checksum with the portable one: every length up to 1300 at every alignment
// within a cache line, and random lengths, seeds and cuts above. Prints the implementations that this machine has,
// then ok.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "checksum/crc32c.h"

namespace {

using Checksum = uint32_t (*)(uint32_t, const void*, size_t);
using Copy = uint32_t (*)(uint32_t, void*, const void*, size_t);

struct Implementation {
  const char* name;
  Checksum checksum;
  Copy copy;
};

std::vector<uint8_t> source(300000), target(300000 + 256);

// Source at `from`, copied to `to`, whose neighbours must stay as they are.
bool agrees(const Implementation& tested, uint32_t seed, size_t from, size_t to, size_t bytes) {
  const uint32_t want = ff::detail::crc32c_portable(seed, source.data() + from, bytes);
  std::memset(target.data(), 0xEE, to + bytes + 64);
  const uint32_t copied = tested.copy(seed, target.data() + to, source.data() + from, bytes);
  ff::publish_stores();
  const bool intact = target[to - 1] == 0xEE && target[to + bytes] == 0xEE &&
                      std::memcmp(target.data() + to, source.data() + from, bytes) == 0;
  if (intact && copied == want && tested.checksum(seed, source.data() + from, bytes) == want) return true;
  std::printf("%s: mismatch: %zu bytes from offset %zu to %zu\n", tested.name, bytes, from, to);
  return false;
}

// A fused copy that insists on what SharedCopy promises it.
uint32_t whole_blocks(uint32_t crc, void* to, const void* from, size_t bytes) {
  const size_t block = ff::detail::SharedCopy::kSharedBlock;
  if (bytes < 2 * block || bytes % block != 0 || reinterpret_cast<uintptr_t>(to) % 64 != 0) std::abort();
  return ff::copy_crc32c(crc, to, from, bytes);
}

}  // namespace

int main() {
  std::mt19937_64 random(5);
  for (auto& byte : source) byte = static_cast<uint8_t>(random());
  namespace d = ff::detail;
  std::vector<Implementation> tested = {{"chosen", ff::crc32c, ff::copy_crc32c},
                                        {"portable", d::crc32c_portable, d::copy_crc32c_portable}};
  if (d::crc32c_sse42_available()) tested.push_back({"sse4.2", d::crc32c_sse42, d::copy_crc32c_sse42});
  if (d::crc32c_avx512_available()) tested.push_back({"vpclmulqdq", d::crc32c_avx512, d::copy_crc32c_avx512});
  if (d::crc32c_avx512_available()) tested.push_back({"four", d::crc32c_avx512, d::copy_crc32c_avx512_apart});
  // Of a source that others change, fused and not.
  tested.push_back({"shared", ff::crc32c, ff::copy_crc32c_of_shared});
  tested.push_back({"shared-fused", d::crc32c_portable, [](uint32_t crc, void* to, const void* from, size_t bytes) {
                      return d::SharedCopy{d::crc32c_portable, whole_blocks}(crc, to, from, bytes);
                    }});
  for (const Implementation& one : tested) {
    std::printf("%s ", one.name);
    for (size_t bytes = 0; bytes <= 1300; ++bytes) {
      const auto seed = static_cast<uint32_t>(bytes % 2 == 0 ? 0 : random());
      if (!agrees(one, seed, bytes * 7 % 64, 64 + bytes % 64, bytes)) return 1;
    }
    for (size_t shift = 0; shift < 64; ++shift) {
      for (size_t bytes : {511, 512, 513, 575, 576, 577, 640, 767, 768, 1024, 4096}) {
        if (!agrees(one, 1, shift, 64, bytes) || !agrees(one, 1, 3, 64 + shift, bytes)) return 1;
      }
    }
    for (int round = 0; round < 3000; ++round) {
      const size_t limit = round % 2 == 0 ? 13000 : round % 20 == 1 ? source.size() - 100 : 70000;
      const size_t from = random() % 100, bytes = random() % limit;
      const auto seed = static_cast<uint32_t>(random());
      if (!agrees(one, seed, from, 64 + random() % 64, bytes)) return 1;
      const size_t cut = bytes == 0 ? 0 : random() % bytes;
      const uint32_t chained =
          one.checksum(one.checksum(seed, source.data() + from, cut), source.data() + from + cut, bytes - cut);
      if (chained == one.checksum(seed, source.data() + from, bytes)) continue;
      std::printf("%s: %zu bytes cut at %zu do not chain\n", one.name, bytes, cut);
      return 1;
    }
  }
  std::printf("ok\n");
  return 0;
}
