// Exercises the engine through its C interface from many threads, for the sanitizers: `stress SEED SCENARIO...`.

#include <functional>
#include <map>
#include <string>

#include "stress_setup.h"

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void(Random&)>> scenarios = {
      {"steady", steady},       {"cancel", cancel},       {"unplug", unplug},
      {"malformed", malformed}, {"send_slot", send_slot}, {"gate", gate},
      {"fuzz", fuzz},           {"ucx_steady", ucx_steady}, {"ucx_cancel", ucx_cancel},
      {"ucx_unplug", ucx_unplug}, {"ucx_fuzz", ucx_fuzz},     {"ucx_send_slot", ucx_send_slot},
      {"streams_unplug", streams_unplug}, {"streams_fuzz", streams_fuzz}, {"ucx_flood", ucx_flood}};
  if (argc < 2) return 2;
  Random random(std::strtoull(argv[1], nullptr, 10));
  for (int i = 2; i < argc; ++i) {
    const auto scenario = scenarios.find(argv[i]);
    if (scenario == scenarios.end()) {
      std::fprintf(stderr, "no scenario %s\n", argv[i]);
      return 2;
    }
    scenario->second(random);
    std::printf("%s ok\n", argv[i]);
  }
  return 0;
}
