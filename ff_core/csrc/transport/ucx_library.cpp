#include "transport/ucx_library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/library.h"
#include "base/thread.h"

namespace ff {
namespace {

constexpr char kLibrary[] = "libucp.so.0";
constexpr unsigned kMajor = 1, kMinor = 13;

// libucs catches SIGSEGV, SIGHUP and others while it is loaded. What the program wants done about them stays.
class SignalActions {
 public:
  SignalActions() {
    for (int number = 1; number < NSIG; ++number) known_[number] = ::sigaction(number, nullptr, &actions_[number]) == 0;
  }
  ~SignalActions() {
    for (int number = 1; number < NSIG; ++number) {
      if (known_[number]) ::sigaction(number, &actions_[number], nullptr);
    }
  }
  SignalActions(const SignalActions&) = delete;
  SignalActions& operator=(const SignalActions&) = delete;

 private:
  struct sigaction actions_[NSIG];
  bool known_[NSIG] = {};
};

// Returns the first name that the library lacks; empty: all are there.
std::string fill(void* library, UcxLibrary* u) {
  Symbols symbols(library);
  const auto get = [&](const char* name, auto* out) { symbols.get(name, out); };
  get("ucp_get_version", &u->get_version);
  get("ucp_config_read", &u->config_read);
  get("ucp_config_modify", &u->config_modify);
  get("ucp_config_release", &u->config_release);
  get("ucp_init_version", &u->init);
  get("ucp_context_query", &u->context_query);
  get("ucp_cleanup", &u->cleanup);
  get("ucp_worker_create", &u->worker_create);
  get("ucp_worker_destroy", &u->worker_destroy);
  get("ucp_worker_get_address", &u->worker_address);
  get("ucp_worker_release_address", &u->worker_release_address);
  get("ucp_worker_get_efd", &u->worker_fd);
  get("ucp_worker_arm", &u->worker_arm);
  get("ucp_worker_progress", &u->worker_progress);
  get("ucp_worker_set_am_recv_handler", &u->set_am_handler);
  get("ucp_ep_create", &u->ep_create);
  get("ucp_ep_close_nbx", &u->ep_close);
  get("ucp_am_send_nbx", &u->am_send);
  get("ucp_am_recv_data_nbx", &u->am_receive);
  get("ucp_am_data_release", &u->am_release);
  get("ucp_request_check_status", &u->request_status);
  get("ucp_request_free", &u->request_free);
  get("ucs_status_string", &u->status_text);
  return symbols.missing();
}

std::unique_ptr<const UcxLibrary> load(std::string* why) {
  const SignalActions kept;
  // Never closed: UCX has a thread of its own.
  const char* named = ::getenv("FF_UCX_LIBRARY");
  void* library = ::dlopen(named != nullptr ? named : kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* text = ::dlerror();
    *why = std::string("UCX cannot be loaded (") + (text != nullptr ? text : kLibrary) +
           "); Debian and Ubuntu have it as libucx0, and FF_UCX_LIBRARY can name another place";
    return nullptr;
  }
  auto ucx = std::make_unique<UcxLibrary>();
  const std::string missing = fill(library, ucx.get());
  if (ucx->get_version != nullptr) ucx->get_version(&ucx->major, &ucx->minor, &ucx->release);
  if (ucx->major != kMajor || ucx->minor < kMinor || !missing.empty()) {
    *why = std::string("UCX (") + (named != nullptr ? named : kLibrary) + ") is version " +
           std::to_string(ucx->major) + "." + std::to_string(ucx->minor) + "." + std::to_string(ucx->release) +
           ", needed is 1.13 or a later 1.x" +
           (missing.empty() ? "" : "; it lacks " + missing);
    return nullptr;
  }
  // UCX writes to standard output, and about lost peers a lot. Errors come back to the caller; $UCX_LOG_LEVEL wins.
  if (::getenv("UCX_LOG_LEVEL") == nullptr) {
    using Set = UcsStatus (*)(const char* name, const char* value);
    const auto set = reinterpret_cast<Set>(::dlsym(library, "ucs_global_opts_set_value"));
    if (set != nullptr) set("LOG_LEVEL", "fatal");
  }
  return ucx;
}

bool without_tcp() {
  return ::getenv("UCX_TLS") == nullptr && !rdma_ports("/sys/class/infiniband").empty();
}

void* open_context(const UcxLibrary& ucx) {
  void *config = nullptr, *context = nullptr;
  check_ucx(ucx, ucx.config_read(nullptr, nullptr, &config), "UCX's configuration");
  // Who has RDMA wants nothing slower by that name, and no TCP port that UCX opens to everybody.
  UcsStatus status = kUcsOk;
  if (without_tcp()) {
    status = ucx.config_modify(config, "TLS", "^tcp");
  }
  // The receiver reads the sender's memory. The sender never writes the receiver's: a retired arena must not change.
  if (status == kUcsOk) status = ucx.config_modify(config, "RNDV_SCHEME", "get_zcopy");
  if (status == kUcsOk) {
    UcpParams params{};
    params.field_mask = UcpParams::kFeatures | UcpParams::kMtWorkersShared;
    params.features = UcpParams::kAm | UcpParams::kWakeup;
    params.mt_workers_shared = 1;
    status = ucx.init(kMajor, kMinor, &params, config, &context);
  }
  ucx.config_release(config);
  check_ucx(ucx, status, "opening UCX");
  UcpContextAttributes is{};
  is.field_mask = UcpContextAttributes::kThreadMode;
  status = ucx.context_query(context, &is);
  if (status == kUcsOk && is.thread_mode == UcpContextAttributes::kMulti) return context;
  ucx.cleanup(context);
  check_ucx(ucx, status, "asking UCX about threads");
  raise(FF_ETRANSPORT, "this build of UCX is for one thread only; needed is one that was configured with --enable-mt");
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Names in a directory, in order; none if it is not there.
std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  if (DIR* directory = ::opendir(path.c_str())) {
    while (const dirent* entry = ::readdir(directory)) {
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    }
    ::closedir(directory);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

const UcxLibrary* find_ucx(std::string* why) {
  return found_once<UcxLibrary>(load, why);
}

void check_ucx(const UcxLibrary& ucx, UcsStatus status, const char* what) {
  if (status < 0) raise(FF_ETRANSPORT, "%s: %s", what, ucx.status_text(status));
}

void* ucx_context(const UcxLibrary& ucx) {
  static std::mutex mutex;
  static void* context = nullptr;
  static pid_t owner = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (context == nullptr) {
    const SignalsBlocked blocked;  // by the thread that UCX starts, too
    context = open_context(ucx);
    owner = ::getpid();
  }
  if (owner != ::getpid()) raise(FF_ETRANSPORT, "UCX was opened by process %d and cannot be used after a fork", owner);
  return context;
}

std::string ucx_settings() {
  const char* transports = ::getenv("UCX_TLS");
  const char* devices = ::getenv("UCX_NET_DEVICES");
  std::string text = transports != nullptr ? std::string("UCX_TLS=") + transports
                     : without_tcp()       ? "UCX_TLS=^tcp (not set; RDMA is up)"
                                           : "UCX_TLS=all (not set)";
  if (devices != nullptr) text += std::string(" UCX_NET_DEVICES=") + devices;
  return text;
}

std::string rdma_ports(const std::string& root) {
  std::string found;
  for (const std::string& device : names_in(root)) {
    for (const std::string& port : names_in(root + "/" + device + "/ports")) {
      // "4: ACTIVE"
      if (first_line(root + "/" + device + "/ports/" + port + "/state").find("ACTIVE") == std::string::npos) continue;
      found += (found.empty() ? "" : " ") + device + ":" + port;
    }
  }
  return found;
}

}  // namespace ff
