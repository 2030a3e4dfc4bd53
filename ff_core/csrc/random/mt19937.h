// The state of a Mersenne Twister (MT19937, Matsumoto and Nishimura), moved on without the numbers being made.
//
// Making the numbers costs several times what moving the state costs, and others can make them meanwhile from copies of
// the state.
#pragma once
#include <cstdint>

namespace ff {

constexpr uint32_t kTwisterWords = 624;

// As after `count` more numbers. used: words of the block that have been given out, 1 to kTwisterWords; the new value is
// returned.
uint32_t skip_mt19937(uint32_t words[kTwisterWords], uint32_t used, uint64_t count);

// The same with the state of a generator of torch's on the host, `size` bytes. Error(FF_EINVAL): it is none.
void skip_torch_generator(void* bytes, uint64_t size, uint64_t count);

}  // namespace ff
