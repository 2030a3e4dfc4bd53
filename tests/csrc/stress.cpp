// Exercises the engine through its C interface from many threads, for the sanitizers: `stress SEED SCENARIO...`.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <functional>
#include <map>
#include <string>

#include "stress_setup.h"

Pair connect_pair(bool tcp) {
  int fds[2];
  if (!tcp) {
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    return {fds[0], fds[1]};
  }
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && ::listen(listener, 1) == 0);
  socklen_t size = sizeof address;
  CHECK(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  fds[0] = ::socket(AF_INET, SOCK_STREAM, 0);
  CHECK(::connect(fds[0], reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  fds[1] = ::accept(listener, nullptr, nullptr);
  CHECK(fds[1] >= 0);
  ::close(listener);
  return {fds[0], fds[1]};
}

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
