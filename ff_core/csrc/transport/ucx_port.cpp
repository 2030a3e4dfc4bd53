#include "transport/ucx_port.h"

#include <cstring>
#include <mutex>

#include "base/error.h"
#include "base/fd.h"
#include "base/thread.h"

namespace ff {
namespace {

constexpr unsigned kPieceId = 70, kGreetingId = 71;  // of active messages
constexpr size_t kMostAside = 64;
constexpr int64_t kCloseMs = 2000;      // for a forced close, which waits for nobody
constexpr uint64_t kMostBytes = 1 << 30;

const UcxLibrary& library() {
  std::string why;
  const UcxLibrary* ucx = find_ucx(&why);
  if (ucx == nullptr) raise(FF_ETRANSPORT, "%s", why.c_str());
  return *ucx;
}

// The process's ports.
struct Ports {
  std::mutex mutex;
  size_t in_use = 0;
  std::vector<std::unique_ptr<UcxPort>> ready;  // made ahead
  std::vector<std::unique_ptr<UcxPort>> aside;  // can be neither used nor destroyed, see UcxPort::is_stuck()
};
Ports& ports() {
  static auto* const all = new Ports;  // never destroyed, not even at exit
  return *all;
}

}  // namespace

UcxPort::Owner UcxPort::open() {
  ucx_context(library());  // refuses a forked child, whose ports are its parent's
  std::unique_ptr<UcxPort> port;
  {
    const std::lock_guard<std::mutex> lock(ports().mutex);
    if (ports().aside.size() >= kMostAside) {
      raise(FF_ETRANSPORT, "%zu UCX connections broke while they were made: this process needs UCX 1.14 or newer",
            kMostAside);
    }
    if (!ports().ready.empty()) {
      port = std::move(ports().ready.back());
      ports().ready.pop_back();
    }
  }
  if (port == nullptr) port.reset(new UcxPort);
  const std::lock_guard<std::mutex> lock(ports().mutex);
  ++ports().in_use;
  return Owner(port.release());
}

void UcxPort::prepare() noexcept {
  const auto enough = [] { return ports().ready.size() >= ports().in_use; };
  try {
    {
      const std::lock_guard<std::mutex> lock(ports().mutex);
      if (enough()) return;
    }
    std::unique_ptr<UcxPort> port(new UcxPort);
    const std::lock_guard<std::mutex> lock(ports().mutex);
    if (!enough()) ports().ready.push_back(std::move(port));
  } catch (const std::exception&) {  // then open() says it
  }
}

void UcxPort::Disposer::operator()(UcxPort* port) const noexcept {
  std::unique_ptr<UcxPort> owned(port);
  const std::lock_guard<std::mutex> lock(ports().mutex);
  --ports().in_use;
  if (port->is_stuck()) ports().aside.push_back(std::move(owned));
}

// UCX 1.13, where it was built with assertions (Debian's is), ends the process when it gives up an endpoint that still
// has to answer the peer's request to connect. That can be so between the first thing that was heard and the peer's
// greeting, which comes after the answer. Working the port later is no way out: the peer's port is gone then, and that
// ends in the same assertion. UCX 1.14 has dropped it (its commit 9ccaf31bb6).
bool UcxPort::is_stuck() const {
  return ucx_->minor < 14 && expecting_ && heard_ && !greeted_;
}

UcxPort::UcxPort() : ucx_(&library()) {
  void* context = ucx_context(*ucx_);
  const SignalsBlocked blocked;  // by threads that UCX starts, too
  UcpWorkerParams params{};
  params.field_mask = UcpWorkerParams::kThreadMode;
  params.thread_mode = UcpWorkerParams::kSerialized;
  check_ucx(*ucx_, ucx_->worker_create(context, &params, &worker_), "a UCX worker");
  try {
    handle(kPieceId, on_piece);
    handle(kGreetingId, on_greeting);
    check_ucx(*ucx_, ucx_->worker_fd(worker_, &fd_), "a UCX worker's descriptor");
    void* address = nullptr;
    size_t bytes = 0;
    check_ucx(*ucx_, ucx_->worker_address(worker_, &address, &bytes), "a UCX worker's address");
    const auto* at = static_cast<const uint8_t*>(address);
    address_.assign(at, at + bytes);
    ucx_->worker_release_address(worker_, address);
  } catch (...) {
    close();
    throw;
  }
}

void UcxPort::handle(unsigned id, UcsStatus (*call)(void*, const void*, size_t, void*, size_t, const UcpAmReceived*)) {
  UcpAmHandler handler{};
  handler.field_mask = UcpAmHandler::kAll;
  handler.id = id;
  handler.call = call;
  handler.argument = this;
  check_ucx(*ucx_, ucx_->set_am_handler(worker_, &handler), "a UCX worker's handler");
}

UcxPort::~UcxPort() {
  close();
}

void UcxPort::expect(uint64_t token) {
  token_ = token;
  expecting_ = true;
}

void UcxPort::connect(const std::vector<uint8_t>& peers_address, uint64_t token) {
  token_ = token;
  UcpEpParams params{};
  params.field_mask = UcpEpParams::kAddress | UcpEpParams::kErrorMode | UcpEpParams::kErrorHandler;
  params.address = peers_address.data();
  params.error_mode = UcpEpParams::kPeer;  // a peer's failure must not end this process
  params.error_handler.call = on_failure;
  params.error_handler.argument = this;
  check_ucx(*ucx_, ucx_->ep_create(worker_, &params, &endpoint_), "no endpoint");
  const UcpRequestParam plain{};
  greeting_ = ucx_->am_send(endpoint_, kGreetingId, &token_, sizeof token_, nullptr, 0, &plain);
  if (is_request(greeting_)) return;
  const UcsStatus status = status_of(greeting_);
  greeting_ = nullptr;
  check_ucx(*ucx_, status, "the first message");
}

void UcxPort::free(void* request) {
  if (request != nullptr) ucx_->request_free(request);
}

void UcxPort::close() noexcept {
  if (worker_ == nullptr) return;
  if (endpoint_ != nullptr) {
    UcpRequestParam param{};
    param.field_mask = UcpRequestParam::kFlags;
    param.flags = UcpRequestParam::kForce;
    void* closing = ucx_->ep_close(endpoint_, &param);
    const int64_t end = monotonic_ns() + kCloseMs * 1000000;
    const auto busy = [&](void* request) {
      return request != nullptr && ucx_->request_status(request) == kUcsInProgress;
    };
    // A failed or closed endpoint's requests all end, and what they had posted is then done with their memory. No
    // further work: a message from the peer could begin a new endpoint.
    for (bool any = true; any && monotonic_ns() < end;) {
      any = is_request(closing) && busy(closing);
      for (void* send : sends_) any = any || busy(send);
      for (const Fetch& fetch : fetches_) any = any || busy(fetch.request);
      if (any) ucx_->worker_progress(worker_);
    }
    if (is_request(closing)) ucx_->request_free(closing);
  }
  for (void* send : sends_) free(send);
  for (const Fetch& fetch : fetches_) free(fetch.request);
  for (const Announced& piece : announced_) ucx_->am_release(worker_, piece.descriptor);
  sends_.clear();
  fetches_.clear();
  announced_.clear();
  ucx_->worker_destroy(worker_);
  endpoint_ = worker_ = nullptr;
}

UcsStatus UcxPort::on_greeting(void* argument, const void* header, size_t header_bytes, void* /*data*/,
                               size_t /*bytes*/, const UcpAmReceived* /*received*/) {
  auto& self = *static_cast<UcxPort*>(argument);
  if (header_bytes == sizeof self.token_ && std::memcmp(header, &self.token_, header_bytes) == 0) self.greeted_ = true;
  return kUcsOk;
}

UcsStatus UcxPort::on_piece(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                            const UcpAmReceived* received) {
  auto& self = *static_cast<UcxPort*>(argument);
  PieceHeader piece;
  if (header_bytes != sizeof piece) return kUcsOk;  // dropped, as the next one is: not our peer's
  std::memcpy(&piece, header, sizeof piece);
  if (piece.token != self.token_) return kUcsOk;
  if ((received->attributes & UcpAmReceived::kIsRendezvous) == 0) self.broken_rule_ = "without rendezvous";
  if (piece.number != self.next_in_) self.broken_rule_ = "out of order";
  // The sender may know of completions that were not asked for here yet.
  if (self.announced_.size() + self.fetches_.size() >= 2 * kWindow) self.broken_rule_ = "beyond the window";
  if (bytes == 0 || bytes > kMostBytes) self.broken_rule_ = "of a forbidden size";
  if (self.broken_rule_ != nullptr) return kUcsOk;
  ++self.next_in_;
  self.announced_.push_back({data, bytes});
  return kUcsInProgress;  // keeps the announcement
}

void UcxPort::on_failure(void* argument, void* /*endpoint*/, UcsStatus status) {
  static_cast<UcxPort*>(argument)->failure_ = status;
}

bool UcxPort::progress() {
  bool any = ucx_->worker_progress(worker_) != 0;
  heard_ = heard_ || any;
  if (failure_ != kUcsOk) raise(FF_EIO, "UCX lost the peer: %s", ucx_->status_text(failure_));
  if (broken_rule_ != nullptr) raise(FF_EPROTO, "the peer sent a piece %s over UCX", broken_rule_);
  if (greeting_ != nullptr && ucx_->request_status(greeting_) != kUcsInProgress) {
    if (ucx_->request_status(greeting_) < 0) raise(FF_EIO, "UCX's first message was not sent");
    free(greeting_);
    greeting_ = nullptr;
    any = true;
  }
  while (!sends_.empty()) {
    const UcsStatus status = sends_.front() == nullptr ? kUcsOk : ucx_->request_status(sends_.front());
    if (status == kUcsInProgress) break;
    if (status < 0) raise(FF_EIO, "sending over UCX: %s", ucx_->status_text(status));
    free(sends_.front());
    sends_.pop_front();
    headers_.pop_front();
    ++sent_;
    any = true;
  }
  return any;
}

bool UcxPort::arm() {
  const UcsStatus status = ucx_->worker_arm(worker_);
  if (status == kUcsBusy) return false;
  if (status != kUcsOk) raise(FF_EIO, "waiting for UCX: %s", ucx_->status_text(status));
  return true;
}

void UcxPort::send(const void* data, uint64_t bytes) {
  UcpRequestParam param{};
  param.field_mask = UcpRequestParam::kFlags | UcpRequestParam::kMemoryType;
  param.flags = UcpRequestParam::kRendezvous;
  param.memory_type = UcpRequestParam::kHost;
  headers_.push_back({token_, next_out_++});
  void* request = ucx_->am_send(endpoint_, kPieceId, &headers_.back(), sizeof(PieceHeader), data, bytes, &param);
  if (!is_request(request)) {
    const UcsStatus status = status_of(request);
    if (status < 0) raise(FF_EIO, "sending over UCX: %s", ucx_->status_text(status));
    request = nullptr;
  }
  sends_.push_back(request);
}

void UcxPort::fetch(void* target) {
  UcpRequestParam param{};
  param.field_mask = UcpRequestParam::kMemoryType;
  param.memory_type = UcpRequestParam::kHost;
  const Announced piece = announced_.front();
  announced_.pop_front();
  void* request = ucx_->am_receive(worker_, piece.descriptor, target, piece.bytes, &param);
  if (!is_request(request)) {
    const UcsStatus status = status_of(request);
    if (status < 0) raise(FF_EIO, "fetching over UCX: %s", ucx_->status_text(status));
    request = nullptr;
  }
  fetches_.push_back({request, piece.bytes});
}

uint64_t UcxPort::fetched() {
  if (fetches_.empty()) return 0;
  const Fetch fetch = fetches_.front();
  const UcsStatus status = fetch.request == nullptr ? kUcsOk : ucx_->request_status(fetch.request);
  if (status == kUcsInProgress) return 0;
  if (status < 0) raise(FF_EIO, "fetching over UCX: %s", ucx_->status_text(status));
  free(fetch.request);
  fetches_.pop_front();
  return fetch.bytes;
}

}  // namespace ff
