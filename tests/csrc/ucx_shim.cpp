// A libucp that stands before the real one and does what a test cannot make that one do. $FF_SHIM says what:
//   busy         ucp_worker_progress always says that it has done something
//   no-worker    no worker can be made
//   no-endpoint  no endpoint can be made: the peer's address has nothing that this host could reach
//   unreachable  an endpoint fails as soon as its worker is worked on
// Everything else is the real library's, which this one is linked with.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "transport/ucx_library.h"

namespace {

bool asked_for(const char* what) {
  const char* wanted = ::getenv("FF_SHIM");
  return wanted != nullptr && std::strcmp(wanted, what) == 0;
}

template <class Function>
Function real(Function, const char* name) {
  return reinterpret_cast<Function>(::dlsym(::dlopen("libucp.so.0", RTLD_NOW | RTLD_NOLOAD), name));
}

struct Victim {
  void* endpoint;
  ff::UcpEpParams params;
};
std::mutex mutex;
std::map<void*, Victim> victims;  // by worker

}  // namespace

extern "C" __attribute__((visibility("default"))) unsigned ucp_worker_progress(void* worker) {
  static const auto progress = real(&ucp_worker_progress, "ucp_worker_progress");
  const unsigned done = progress(worker);
  Victim victim{};
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = victims.find(worker);
    if (found != victims.end()) {
      victim = found->second;
      victims.erase(found);
    }
  }
  constexpr ff::UcsStatus kTimedOut = -80;  // UCS_ERR_ENDPOINT_TIMEOUT
  const auto& handler = victim.params.error_handler;
  if (victim.endpoint != nullptr) handler.call(handler.argument, victim.endpoint, kTimedOut);
  static const bool busy = asked_for("busy");
  return busy ? done + 1 : done;
}

extern "C" __attribute__((visibility("default"))) ff::UcsStatus ucp_worker_create(void* context,
                                                                                 const ff::UcpWorkerParams* params,
                                                                                 void** worker) {
  static const auto create = real(&ucp_worker_create, "ucp_worker_create");
  constexpr ff::UcsStatus kNoMemory = -4;  // UCS_ERR_NO_MEMORY
  return asked_for("no-worker") ? kNoMemory : create(context, params, worker);
}

extern "C" __attribute__((visibility("default"))) ff::UcsStatus ucp_ep_create(void* worker, const ff::UcpEpParams* params,
                                                                             void** endpoint) {
  static const auto create = real(&ucp_ep_create, "ucp_ep_create");
  constexpr ff::UcsStatus kUnreachable = -6;  // UCS_ERR_UNREACHABLE
  if (asked_for("no-endpoint")) return kUnreachable;
  const ff::UcsStatus status = create(worker, params, endpoint);
  static const bool unreachable = asked_for("unreachable");
  if (unreachable && status == ff::kUcsOk) {
    const std::lock_guard<std::mutex> lock(mutex);
    victims[worker] = {*endpoint, *params};
  }
  return status;
}
