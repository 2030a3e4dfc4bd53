// The C interface of writer and receiver: handles, null checks, exceptions to codes.
#include <cstdio>

#include "base/error.h"
#include "checksum/crc32c.h"
#include "device/cuda_device.h"
#include "receiver/receiver.h"
#include "transport/given_connection.h"
#include "transport/ucx_library.h"
#include "writer/writer.h"

struct ff_writer {
  explicit ff_writer(const ff_writer_options& options) : writer(options) {}
  ff::Writer writer;
};

struct ff_receiver {
  explicit ff_receiver(int notify_fd) : receiver(notify_fd) {}
  ff::Receiver receiver;
};

namespace {

template <class T>
T& not_null(T* pointer, const char* what) {
  if (pointer == nullptr) ff::raise(FF_EINVAL, "%s is null", what);
  return *pointer;
}

// Runs `body` on the writer and returns FF_OK.
template <class Body>
int with(ff_writer* w, Body&& body) {
  return ff::guarded([&] {
    body(not_null(w, "writer").writer);
    return FF_OK;
  });
}

template <class Body>
int with(ff_receiver* r, Body&& body) {
  return ff::guarded([&] {
    body(not_null(r, "receiver").receiver);
    return FF_OK;
  });
}

}  // namespace

extern "C" {

const char* ff_interface(void) { return FF_INTERFACE; }

const char* ff_build_info(void) {
  static const std::string text = [] {
    char buffer[1024];
    std::snprintf(buffer, sizeof buffer, R"({"compiler": "%s", "crc32c": "%s", "cuda": %s, "transports": ["shm", "ucx", "tcp"]})",
                  "gcc-compatible " __VERSION__, ff::crc32c_implementation(), ff::cuda_build_info().c_str());
    return std::string(buffer);
  }();
  return text.c_str();
}

int ff_writer_open(const ff_writer_options* options, ff_writer** out) {
  return ff::guarded([&] {
    not_null(out, "result pointer") = nullptr;
    *out = std::make_unique<ff_writer>(not_null(options, "options")).release();
    return FF_OK;
  });
}

int ff_writer_prepare(ff_writer* w, int32_t device) {
  return with(w, [&](ff::Writer& writer) { writer.prepare(device); });
}

int ff_writer_set_segments(ff_writer* w, const ff_segment* segments, size_t count) {
  return with(w, [&](ff::Writer& writer) {
    if (count > 0) not_null(segments, "segments");
    writer.set_segments(segments, count);
  });
}

int ff_writer_add_holder(ff_writer* w, const ff_connection* connection, int64_t timeout_ms) {
  ff::GivenConnection given(connection);  // taken over in every case
  return with(w, [&](ff::Writer& writer) {
    writer.add_holder([&](const void* arena) { return given.sender(arena, timeout_ms); });
  });
}

int ff_writer_clear_holders(ff_writer* w) {
  return with(w, [](ff::Writer& writer) { writer.clear_holders(); });
}

int ff_writer_resend(ff_writer* w, uint32_t slot, uint64_t epoch, int64_t version) {
  return with(w, [&](ff::Writer& writer) { writer.resend(slot, epoch, version); });
}

int ff_writer_seal(ff_writer* w, int64_t version, const void* blob, uint64_t bytes) {
  return with(w, [&](ff::Writer& writer) { writer.seal(version, blob, bytes); });
}

int ff_writer_wait_copied(ff_writer* w, int64_t version, int64_t timeout_ms) {
  return with(w, [&](ff::Writer& writer) { writer.wait_copied(version, timeout_ms); });
}

int ff_writer_set_window(ff_writer* w, uint64_t window_us) {
  return with(w, [&](ff::Writer& writer) { writer.set_window(window_us); });
}

int ff_writer_set_downloads(ff_writer* w, uint64_t hold_us, uint64_t spread_us) {
  return with(w, [&](ff::Writer& writer) { writer.set_downloads(hold_us, spread_us); });
}

int ff_writer_go(ff_writer* w) {
  return with(w, [&](ff::Writer& writer) { writer.go(); });
}

int ff_writer_collective_begin(ff_writer* w, void* stream, uint64_t* ticket) {
  return with(w, [&](ff::Writer& writer) { not_null(ticket, "result pointer") = writer.collectives().begin(stream); });
}

int ff_writer_collective_end(ff_writer* w, uint64_t ticket, void* stream) {
  return with(w, [&](ff::Writer& writer) { writer.collectives().end(ticket, stream); });
}

int ff_writer_collective_forget(ff_writer* w, uint64_t ticket) {
  return with(w, [&](ff::Writer& writer) { writer.collectives().forget(ticket); });
}

int ff_writer_begin(ff_writer* w, uint32_t slot, uint64_t epoch, int64_t version, void* stream) {
  return with(w, [&](ff::Writer& writer) { writer.begin(slot, epoch, version, stream); });
}

int ff_writer_device_wait(ff_writer* w, int64_t version, void* stream, int64_t timeout_ms) {
  return with(w, [&](ff::Writer& writer) { writer.device_wait(version, stream, timeout_ms); });
}

int ff_writer_step_ended(ff_writer* w, int64_t version, int32_t* ended) {
  return with(w, [&](ff::Writer& writer) { not_null(ended, "result pointer") = writer.step_ended(version); });
}

int ff_writer_check(ff_writer* w) {
  return with(w, [](ff::Writer& writer) { writer.check(); });
}

int ff_writer_cancel(ff_writer* w) {
  return with(w, [](ff::Writer& writer) { writer.cancel(); });
}

int ff_writer_stats_get(ff_writer* w, ff_writer_stats* out) {
  return with(w, [&](ff::Writer& writer) { not_null(out, "result pointer") = writer.stats(); });
}

int ff_writer_close(ff_writer* w) {
  return ff::guarded([&] {
    const std::unique_ptr<ff_writer> owned(&not_null(w, "writer"));
    return FF_OK;
  });
}

int ff_receiver_open(int notify_fd, ff_receiver** out) {
  return ff::guarded([&] {
    not_null(out, "result pointer") = nullptr;
    *out = std::make_unique<ff_receiver>(notify_fd).release();
    return FF_OK;
  });
}

int ff_receiver_attach(ff_receiver* r, const ff_connection* connection, void* arena, uint64_t arena_bytes,
                       uint64_t epoch, uint64_t* connection_id) {
  ff::GivenConnection given(connection);
  return with(r, [&](ff::Receiver& receiver) {
    const uint64_t id = receiver.attach(given.receivers(), given.copiers(), arena, arena_bytes, epoch);
    if (connection_id != nullptr) *connection_id = id;
  });
}

int ff_receiver_detach(ff_receiver* r, const void* arena) {
  return with(r, [&](ff::Receiver& receiver) { receiver.detach(arena); });
}

int ff_receiver_retire_before(ff_receiver* r, uint64_t epoch) {
  return with(r, [&](ff::Receiver& receiver) { receiver.retire_before(epoch); });
}

int ff_receiver_poll(ff_receiver* r, ff_receiver_status* out, size_t capacity, size_t* count) {
  return with(r, [&](ff::Receiver& receiver) {
    if (capacity > 0) not_null(out, "result array");
    not_null(count, "count") = receiver.poll(out, capacity);
  });
}

int ff_receiver_close(ff_receiver* r) {
  return ff::guarded([&] {
    const std::unique_ptr<ff_receiver> owned(&not_null(r, "receiver"));
    return FF_OK;
  });
}

int ff_ucx_check(void) {
  return ff::guarded([] {
    std::string why;
    const ff::UcxLibrary* ucx = ff::find_ucx(&why);
    if (ucx == nullptr) ff::raise(FF_ETRANSPORT, "%s", why.c_str());
    ff::ucx_context(*ucx);
    return FF_OK;
  });
}

const char* ff_rdma_ports(const char* root) {
  thread_local std::string found;
  found = root == nullptr ? "" : ff::rdma_ports(root);
  return found.c_str();
}
}
