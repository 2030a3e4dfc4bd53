// What ucx_library.h declares, compared with UCX's own headers by the compiler. Never run.
#include <ucp/api/ucp.h>

#include <type_traits>

#include "transport/ucx_library.h"

#define SAME(ours, our_field, theirs, their_field)                                                    \
  static_assert(offsetof(ours, our_field) == offsetof(theirs, their_field), #their_field " elsewhere"); \
  static_assert(sizeof(ours::our_field) == sizeof(theirs::their_field), #their_field " of another size")

namespace ff {

static_assert(sizeof(UcsStatus) == sizeof(ucs_status_t));
static_assert(kUcsOk == UCS_OK && kUcsInProgress == UCS_INPROGRESS);
static_assert(kUcsBusy == UCS_ERR_BUSY && kUcsLast == UCS_ERR_LAST);

SAME(UcpParams, field_mask, ucp_params_t, field_mask);
SAME(UcpParams, features, ucp_params_t, features);
SAME(UcpParams, mt_workers_shared, ucp_params_t, mt_workers_shared);
static_assert(UcpParams::kFeatures == UCP_PARAM_FIELD_FEATURES);
static_assert(UcpParams::kMtWorkersShared == UCP_PARAM_FIELD_MT_WORKERS_SHARED);
static_assert(UcpParams::kWakeup == UCP_FEATURE_WAKEUP && UcpParams::kAm == UCP_FEATURE_AM);

SAME(UcpContextAttributes, field_mask, ucp_context_attr_t, field_mask);
SAME(UcpContextAttributes, thread_mode, ucp_context_attr_t, thread_mode);
static_assert(UcpContextAttributes::kThreadMode == UCP_ATTR_FIELD_THREAD_MODE);
static_assert(UcpContextAttributes::kMulti == UCS_THREAD_MODE_MULTI);
static_assert(sizeof(UcpContextAttributes) >= sizeof(ucp_context_attr_t));

SAME(UcpWorkerParams, field_mask, ucp_worker_params_t, field_mask);
SAME(UcpWorkerParams, thread_mode, ucp_worker_params_t, thread_mode);
static_assert(UcpWorkerParams::kThreadMode == UCP_WORKER_PARAM_FIELD_THREAD_MODE);
static_assert(UcpWorkerParams::kSerialized == UCS_THREAD_MODE_SERIALIZED);

SAME(UcpEpParams, field_mask, ucp_ep_params_t, field_mask);
SAME(UcpEpParams, address, ucp_ep_params_t, address);
SAME(UcpEpParams, error_mode, ucp_ep_params_t, err_mode);
SAME(UcpEpParams, error_handler.call, ucp_ep_params_t, err_handler.cb);
SAME(UcpEpParams, error_handler.argument, ucp_ep_params_t, err_handler.arg);
static_assert(UcpEpParams::kAddress == UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
static_assert(UcpEpParams::kErrorMode == UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE);
static_assert(UcpEpParams::kErrorHandler == UCP_EP_PARAM_FIELD_ERR_HANDLER);
static_assert(UcpEpParams::kPeer == UCP_ERR_HANDLING_MODE_PEER);

SAME(UcpRequestParam, field_mask, ucp_request_param_t, op_attr_mask);
SAME(UcpRequestParam, flags, ucp_request_param_t, flags);
SAME(UcpRequestParam, callback, ucp_request_param_t, cb);
SAME(UcpRequestParam, memory_type, ucp_request_param_t, memory_type);
SAME(UcpRequestParam, memory_handle, ucp_request_param_t, memh);
static_assert(UcpRequestParam::kFlags == UCP_OP_ATTR_FIELD_FLAGS);
static_assert(UcpRequestParam::kMemoryType == UCP_OP_ATTR_FIELD_MEMORY_TYPE);
static_assert(UcpRequestParam::kRendezvous == UCP_AM_SEND_FLAG_RNDV);
static_assert(UcpRequestParam::kForce == UCP_EP_CLOSE_FLAG_FORCE);
static_assert(UcpRequestParam::kHost == UCS_MEMORY_TYPE_HOST);

SAME(UcpAmReceived, attributes, ucp_am_recv_param_t, recv_attr);
static_assert(UcpAmReceived::kIsRendezvous == UCP_AM_RECV_ATTR_FLAG_RNDV);

SAME(UcpAmHandler, field_mask, ucp_am_handler_param_t, field_mask);
SAME(UcpAmHandler, id, ucp_am_handler_param_t, id);
SAME(UcpAmHandler, call, ucp_am_handler_param_t, cb);
SAME(UcpAmHandler, argument, ucp_am_handler_param_t, arg);
static_assert(UcpAmHandler::kAll ==
              (UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG));

// Structures of ours are read by UCX as its own: they must not be smaller.
static_assert(sizeof(UcpParams) >= sizeof(ucp_params_t) && sizeof(UcpWorkerParams) >= sizeof(ucp_worker_params_t));
static_assert(sizeof(UcpEpParams) >= sizeof(ucp_ep_params_t) && sizeof(UcpRequestParam) >= sizeof(ucp_request_param_t));
static_assert(sizeof(UcpAmHandler) >= sizeof(ucp_am_handler_param_t));

// Functions: the same but for the names of pointers' and enums' types.
template <class A, class B>
constexpr bool alike = sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B> &&
                       std::is_void_v<std::remove_pointer_t<A>> <= std::is_pointer_v<B>;
template <class A, class B>
struct SameCall : std::false_type {};
template <class R, class... A, class S, class... B>
struct SameCall<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) != sizeof...(B)) {
      return false;
    } else if constexpr (std::is_void_v<R> || std::is_void_v<S>) {
      return std::is_void_v<R> && std::is_void_v<S> && (alike<A, B> && ...);
    } else {
      return alike<R, S> && (alike<A, B> && ...);
    }
  }();
};
#define CALL(ours, theirs) static_assert(SameCall<decltype(UcxLibrary::ours), decltype(&theirs)>::value, #theirs)
CALL(get_version, ucp_get_version);
CALL(config_read, ucp_config_read);
CALL(config_modify, ucp_config_modify);
CALL(config_release, ucp_config_release);
CALL(init, ucp_init_version);
CALL(context_query, ucp_context_query);
CALL(cleanup, ucp_cleanup);
CALL(worker_create, ucp_worker_create);
CALL(worker_destroy, ucp_worker_destroy);
CALL(worker_address, ucp_worker_get_address);
CALL(worker_release_address, ucp_worker_release_address);
CALL(worker_fd, ucp_worker_get_efd);
CALL(worker_arm, ucp_worker_arm);
CALL(worker_progress, ucp_worker_progress);
CALL(set_am_handler, ucp_worker_set_am_recv_handler);
CALL(ep_create, ucp_ep_create);
CALL(ep_close, ucp_ep_close_nbx);
CALL(am_send, ucp_am_send_nbx);
CALL(am_receive, ucp_am_recv_data_nbx);
CALL(am_release, ucp_am_data_release);
CALL(request_status, ucp_request_check_status);
CALL(request_free, ucp_request_free);
CALL(status_text, ucs_status_string);

}  // namespace ff
