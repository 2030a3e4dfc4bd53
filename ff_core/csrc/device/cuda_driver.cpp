#include "device/cuda_driver.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>

#include "base/error.h"

namespace ff {
namespace {

constexpr char kLibrary[] = "libcuda.so.1";

template <class Function>
void find(void* library, const char* name, Function* out, std::string* missing) {
  *out = reinterpret_cast<Function>(::dlsym(library, name));
  if (*out == nullptr && missing->empty()) *missing = name;
}

// Returns the first name that the library lacks; empty: all are there.
std::string fill(void* library, CudaDriver* d) {
  std::string missing;
  const auto get = [&](const char* name, auto* out) { find(library, name, out, &missing); };
  get("cuInit", &d->init);
  get("cuDriverGetVersion", &d->driver_version);
  get("cuDeviceGetCount", &d->device_count);
  get("cuDeviceGet", &d->device_get);
  get("cuGetErrorName", &d->error_name);
  get("cuGetErrorString", &d->error_string);
  get("cuDevicePrimaryCtxRetain", &d->context_retain);
  get("cuDevicePrimaryCtxRelease_v2", &d->context_release);
  get("cuCtxPushCurrent_v2", &d->context_push);
  get("cuCtxPopCurrent_v2", &d->context_pop);
  get("cuCtxSynchronize", &d->context_synchronize);
  get("cuThreadExchangeStreamCaptureMode", &d->capture_mode);
  get("cuCtxGetStreamPriorityRange", &d->stream_priorities);
  get("cuStreamCreateWithPriority", &d->stream_create);
  get("cuStreamDestroy_v2", &d->stream_destroy);
  get("cuStreamWaitEvent", &d->stream_wait);
  get("cuStreamSynchronize", &d->stream_synchronize);
  get("cuEventCreate", &d->event_create);
  get("cuEventDestroy_v2", &d->event_destroy);
  get("cuEventRecord", &d->event_record);
  get("cuEventQuery", &d->event_query);
  get("cuEventSynchronize", &d->event_synchronize);
  get("cuMemAlloc_v2", &d->memory_allocate);
  get("cuMemFree_v2", &d->memory_free);
  get("cuMemHostAlloc", &d->host_allocate);
  get("cuMemFreeHost", &d->host_free);
  get("cuMemHostRegister_v2", &d->host_register);
  get("cuMemHostUnregister", &d->host_unregister);
  get("cuMemcpyDtoHAsync_v2", &d->copy_to_host);
  get("cuMemcpyHtoDAsync_v2", &d->copy_to_device);
  get("cuModuleLoadData", &d->module_load);
  get("cuModuleUnload", &d->module_unload);
  get("cuModuleGetFunction", &d->module_function);
  get("cuLaunchKernel", &d->launch);
  return missing;
}

std::unique_ptr<const CudaDriver> load(std::string* why) {
  // Never closed: the driver keeps threads of its own, and torch uses the same library.
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* text = ::dlerror();
    *why = std::string("the CUDA driver's library cannot be loaded (") + (text != nullptr ? text : kLibrary) + ")";
    return nullptr;
  }
  auto driver = std::make_unique<CudaDriver>();
  const std::string missing = fill(library, driver.get());
  if (missing.empty()) return driver;
  *why = std::string("the CUDA driver's library ") + kLibrary + " is too old: it lacks " + missing;
  return nullptr;
}

}  // namespace

const CudaDriver* find_cuda_driver(std::string* why) {
  static std::mutex mutex;
  static std::unique_ptr<const CudaDriver> driver;  // written once
  const std::lock_guard<std::mutex> lock(mutex);
  if (driver == nullptr) driver = load(why);
  return driver.get();
}

void check_cuda(const CudaDriver& driver, CuResult code, const char* what, ...) {
  if (code == kCuSuccess) return;
  char doing[256];
  va_list arguments;
  va_start(arguments, what);
  std::vsnprintf(doing, sizeof doing, what, arguments);
  va_end(arguments);
  const char *name = nullptr, *text = nullptr;
  if (driver.error_name(code, &name) != kCuSuccess || name == nullptr) name = "an unknown CUDA error";
  if (driver.error_string(code, &text) != kCuSuccess || text == nullptr) text = "no text";
  raise(FF_EDEVICE, "%s: %s, code %d (%s)", doing, name, code, text);
}

}  // namespace ff
