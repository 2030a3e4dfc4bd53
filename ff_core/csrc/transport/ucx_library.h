// libucx's functions, found at run time: the engine is built without UCX and works without it.
//
// Declared here, not included: a build needs no UCX headers. Names, types and values are those of ucp.h 1.13, the
// oldest version that is accepted; UCX keeps them for all of ABI 0 (libucp.so.0). UCX reads only the fields that a
// structure's mask names, so that structures which have grown since can be passed as they were.
// tests/csrc/ucx_abi_check.cpp compares all of it with the real headers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace ff {

using UcsStatus = int8_t;  // ucs_status_t is a packed enum
constexpr UcsStatus kUcsOk = 0, kUcsInProgress = 1, kUcsBusy = -15, kUcsLast = -100;

struct UcpParams {
  uint64_t field_mask;  // kFeatures, kMtWorkersShared
  uint64_t features;    // kAm, kWakeup
  size_t request_size;
  void (*request_init)(void*);
  void (*request_cleanup)(void*);
  uint64_t tag_sender_mask;
  int mt_workers_shared;
  size_t estimated_eps, estimated_ppn;
  const char* name;
  uint8_t rest[128];
  static constexpr uint64_t kFeatures = 1 << 0, kMtWorkersShared = 1 << 5;
  static constexpr uint64_t kWakeup = 1 << 4, kAm = 1 << 6;
};

struct UcpContextAttributes {
  uint64_t field_mask;  // kThreadMode
  size_t request_size;
  int thread_mode;  // kMulti: workers of one context may be used by several threads
  uint8_t rest[256];
  static constexpr uint64_t kThreadMode = 1 << 1;
  static constexpr int kMulti = 2;
};

struct UcpWorkerParams {
  uint64_t field_mask;  // kThreadMode
  int thread_mode;      // kSerialized: any thread, one at a time
  uint8_t rest[256];
  static constexpr uint64_t kThreadMode = 1 << 0;
  static constexpr int kSerialized = 1;
};

struct UcpEpParams {
  uint64_t field_mask;  // kAddress, kErrorMode, kErrorHandler
  const void* address;
  int error_mode;  // kPeer: failures of the peer are told to the handler
  struct {
    void (*call)(void* argument, void* endpoint, UcsStatus status);
    void* argument;
  } error_handler;
  uint8_t rest[128];
  static constexpr uint64_t kAddress = 1 << 0, kErrorMode = 1 << 1, kErrorHandler = 1 << 2;
  static constexpr int kPeer = 1;
};

struct UcpRequestParam {
  uint32_t field_mask;  // kFlags, kMemoryType
  uint32_t flags;       // kRendezvous (ucp_am_send_nbx), kForce (ucp_ep_close_nbx)
  void* request;
  void (*callback)();
  uint64_t datatype;
  void* user_data;
  void* reply_buffer;
  int memory_type;  // kHost
  void* receive_info;
  void* memory_handle;
  uint8_t rest[128];
  static constexpr uint32_t kFlags = 1 << 4, kMemoryType = 1 << 6;
  static constexpr uint32_t kRendezvous = 1 << 2, kForce = 1 << 0;
  static constexpr int kHost = 0;
};

struct UcpAmReceived {
  uint64_t attributes;  // kIsRendezvous
  void* reply_endpoint;
  static constexpr uint64_t kIsRendezvous = 1 << 17;
};

struct UcpAmHandler {
  uint64_t field_mask;  // kAll: id, call, argument
  unsigned id;
  uint32_t flags;
  UcsStatus (*call)(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                    const UcpAmReceived* received);
  void* argument;
  uint8_t rest[128];
  static constexpr uint64_t kAll = 1 << 0 | 1 << 2 | 1 << 3;
};

struct UcxLibrary {
  void (*get_version)(unsigned* major, unsigned* minor, unsigned* release);
  UcsStatus (*config_read)(const char* prefix, const char* file, void** config);
  UcsStatus (*config_modify)(void* config, const char* name, const char* value);
  void (*config_release)(void* config);
  UcsStatus (*init)(unsigned major, unsigned minor, const UcpParams*, const void* config, void** context);
  UcsStatus (*context_query)(void* context, UcpContextAttributes*);
  void (*cleanup)(void* context);
  UcsStatus (*worker_create)(void* context, const UcpWorkerParams*, void** worker);
  void (*worker_destroy)(void* worker);
  UcsStatus (*worker_address)(void* worker, void** address, size_t* bytes);
  void (*worker_release_address)(void* worker, void* address);
  UcsStatus (*worker_fd)(void* worker, int* fd);
  UcsStatus (*worker_arm)(void* worker);
  unsigned (*worker_progress)(void* worker);
  UcsStatus (*set_am_handler)(void* worker, const UcpAmHandler*);
  UcsStatus (*ep_create)(void* worker, const UcpEpParams*, void** endpoint);
  void* (*ep_close)(void* endpoint, const UcpRequestParam*);
  void* (*am_send)(void* endpoint, unsigned id, const void* header, size_t header_bytes, const void* data, size_t bytes,
                   const UcpRequestParam*);
  void* (*am_receive)(void* worker, void* arrived, void* target, size_t bytes, const UcpRequestParam*);
  void (*am_release)(void* worker, void* arrived);
  UcsStatus (*request_status)(void* request);
  void (*request_free)(void* request);
  const char* (*status_text)(UcsStatus);
  unsigned major, minor, release;
};

// Of what a function gave back: a request, or a status.
inline bool is_request(const void* given) {
  return reinterpret_cast<uintptr_t>(given) - 1 <
         static_cast<uintptr_t>(static_cast<intptr_t>(kUcsLast)) - 1;
}
inline UcsStatus status_of(const void* given) {
  return is_request(given) ? kUcsInProgress : static_cast<UcsStatus>(reinterpret_cast<intptr_t>(given));
}

// The library, loaded at the first call that finds it; null: it is not there or too old, and *why says so.
const UcxLibrary* find_ucx(std::string* why);

// Error(FF_ETRANSPORT): "WHAT: text", if `status` is a failure.
void check_ucx(const UcxLibrary& ucx, UcsStatus status, const char* what);

// The process's UCX context, made at the first call and kept. FF_ETRANSPORT.
void* ucx_context(const UcxLibrary& ucx);

// What UCX may use in this process, "UCX_TLS=tcp": the environment's words for it, or what stands for them.
std::string ucx_settings();

// Ports of RDMA devices under `root` (/sys/class/infiniband) that are up: "mlx5_0:1 mlx5_1:1"; "" if there are none.
std::string rdma_ports(const std::string& root);

}  // namespace ff
