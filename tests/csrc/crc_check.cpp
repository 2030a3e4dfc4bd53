// Compares the checksums with each other over lengths and alignments: `crc_check` prints ok.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "crc32c.h"

int main() {
  std::mt19937_64 random(5);
  std::vector<uint8_t> source(70000), target(70000 + 128);
  for (auto& byte : source) byte = static_cast<uint8_t>(random());
  if (!ff::detail::crc32c_sse42_available()) std::printf("portable only\n");
  for (int round = 0; round < 6000; ++round) {
    const size_t from = random() % 100, to = 64 + random() % 64;
    const size_t limit = round % 3 == 0 ? 300 : round % 3 == 1 ? 13000 : source.size() - 100;
    const size_t bytes = random() % limit;
    const auto seed = static_cast<uint32_t>(round % 2 == 0 ? 0 : random());
    const uint32_t want = ff::detail::crc32c_portable(seed, source.data() + from, bytes);
    std::memset(target.data(), 0xEE, target.size());
    const uint32_t copied = ff::copy_crc32c(seed, target.data() + to, source.data() + from, bytes);
    ff::publish_stores();
    const size_t cut = bytes == 0 ? 0 : random() % bytes;
    const uint32_t chained =
        ff::crc32c(ff::crc32c(seed, source.data() + from, cut), source.data() + from + cut, bytes - cut);
    const bool intact = target[to - 1] == 0xEE && target[to + bytes] == 0xEE;
    if (ff::crc32c(seed, source.data() + from, bytes) != want || copied != want || chained != want || !intact ||
        std::memcmp(target.data() + to, source.data() + from, bytes) != 0) {
      std::printf("mismatch: %zu bytes from offset %zu to %zu\n", bytes, from, to);
      return 1;
    }
  }
  std::printf("ok\n");
  return 0;
}
