#include "random/mt19937.h"

#include <cstring>

#include "base/error.h"
#include "ff_engine.h"

namespace ff {
namespace {

constexpr uint32_t kMiddle = 397;

uint32_t twisted(uint32_t word, uint32_t next, uint32_t other) {
  const uint32_t mixed = (word & 0x80000000u) | (next & 0x7fffffffu);
  return other ^ (mixed >> 1) ^ ((0u - (next & 1u)) & 0x9908b0dfu);
}

// In two runs whose words do not depend on one another within a vector, and the last word.
[[gnu::always_inline]] inline void twist_words(uint32_t* words) {
  for (uint32_t i = 0; i < kTwisterWords - kMiddle; ++i) words[i] = twisted(words[i], words[i + 1], words[i + kMiddle]);
  for (uint32_t i = kTwisterWords - kMiddle; i < kTwisterWords - 1; ++i)
    words[i] = twisted(words[i], words[i + 1], words[i + kMiddle - kTwisterWords]);
  words[kTwisterWords - 1] = twisted(words[kTwisterWords - 1], words[0], words[kMiddle - 1]);
}

#if defined(__x86_64__)
// Vectors of 8 words: half the time.
[[gnu::target("avx2")]] void twist_avx2(uint32_t* words) { twist_words(words); }
#endif

void twist_anywhere(uint32_t* words) { twist_words(words); }

auto fastest_twist() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return twist_avx2;
#endif
  return twist_anywhere;
}

// A generator's state as torch hands it out. What comes behind it is a normal number kept for later.
struct TorchState {
  uint64_t seed;
  int32_t left, seeded;
  uint64_t next;
  uint64_t words[kTwisterWords];  // of 32 bits each
};

}  // namespace

uint32_t skip_mt19937(uint32_t words[kTwisterWords], uint32_t used, uint64_t count) {
  static const auto twist = fastest_twist();
  while (count > kTwisterWords - used) {
    count -= kTwisterWords - used;
    twist(words);
    used = 0;
  }
  return used + static_cast<uint32_t>(count);
}

void skip_torch_generator(void* bytes, uint64_t size, uint64_t count) {
  TorchState state;
  if (size < sizeof state) raise(FF_EINVAL, "a generator's state has %llu bytes", static_cast<unsigned long long>(size));
  std::memcpy(&state, bytes, sizeof state);
  if (state.left < 1 || state.left > static_cast<int32_t>(kTwisterWords))
    raise(FF_EINVAL, "a generator's state has %d words left", state.left);
  uint32_t words[kTwisterWords];
  for (uint32_t i = 0; i < kTwisterWords; ++i) words[i] = static_cast<uint32_t>(state.words[i]);
  const uint32_t used = skip_mt19937(words, 1 + kTwisterWords - static_cast<uint32_t>(state.left), count);
  for (uint32_t i = 0; i < kTwisterWords; ++i) state.words[i] = words[i];
  state.left = static_cast<int32_t>(1 + kTwisterWords - used);
  state.next = used;
  std::memcpy(bytes, &state, sizeof state);
}

}  // namespace ff

extern "C" int ff_torch_generator_skip(void* state, uint64_t bytes, uint64_t count) {
  return ff::guarded([&] {
    if (state == nullptr) ff::raise(FF_EINVAL, "the generator's state is null");
    ff::skip_torch_generator(state, bytes, count);
    return FF_OK;
  });
}
