#include "device/cuda_device.h"

#include <cstdio>

#include "base/error.h"
#include "device/cuda_driver.h"
#include "device/cuda_image.h"

namespace ff {
namespace {

using ull = unsigned long long;

constexpr unsigned kNonBlockingStream = 1, kBlockingSyncEvent = 1, kEventWithoutTiming = 2, kPortableHost = 1;

// The device's context is the calling thread's current one for the life of this object; then what was before. And
// meanwhile nothing is forbidden because somebody captures a CUDA graph: what the engine does is not part of it, and a
// call that is refused would also spoil the capture. Where nothing may be thrown: ask ok().
class TryCurrent {
 public:
  TryCurrent(const CudaDriver& driver, void* context) noexcept : driver_(driver), code_(driver.context_push(context)) {
    if (ok()) driver_.capture_mode(&mode_);
  }
  ~TryCurrent() {
    if (!ok()) return;
    driver_.capture_mode(&mode_);
    void* popped;
    driver_.context_pop(&popped);
  }
  TryCurrent(const TryCurrent&) = delete;
  TryCurrent& operator=(const TryCurrent&) = delete;
  bool ok() const { return code_ == kCuSuccess; }
  CuResult code() const { return code_; }

 private:
  static constexpr int kRelaxed = 2;
  const CudaDriver& driver_;
  const CuResult code_;
  int mode_ = kRelaxed;  // then the thread's own
};

class Current : public TryCurrent {
 public:
  Current(const CudaDriver& driver, void* context) : TryCurrent(driver, context) {
    check_cuda(driver, code(), "cuCtxPushCurrent");
  }
};

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDriver& driver, int index) : driver_(driver), index_(index) {
    check_cuda(driver, driver.device_get(&device_, index), "cuDeviceGet of device %d", index);
    check_cuda(driver, driver.context_retain(&context_, device_), "cuDevicePrimaryCtxRetain of device %d", index);
    try {
      prepare();
    } catch (...) {
      close();
      throw;
    }
  }
  ~CudaDevice() override { close(); }

  DeviceStream create_stream() override {
    const Current current(driver_, context_);
    void* stream = nullptr;
    check_cuda(driver_, driver_.stream_create(&stream, kNonBlockingStream, priority_),
               "cuStreamCreateWithPriority on device %d", index_);
    return stream;
  }
  void destroy_stream(DeviceStream stream) noexcept override {
    const TryCurrent current(driver_, context_);
    driver_.stream_destroy(stream);
  }
  DeviceEvent create_event(bool awaited) override {
    const Current current(driver_, context_);
    void* event = nullptr;
    check_cuda(driver_, driver_.event_create(&event, kEventWithoutTiming | (awaited ? kBlockingSyncEvent : 0)),
               "cuEventCreate on device %d", index_);
    return event;
  }
  void destroy_event(DeviceEvent event) noexcept override {
    const TryCurrent current(driver_, context_);
    driver_.event_destroy(event);
  }
  void record(DeviceEvent event, DeviceStream stream) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.event_record(event, stream), "cuEventRecord on device %d", index_);
  }
  void wait(DeviceStream stream, DeviceEvent event) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.stream_wait(stream, event, 0), "cuStreamWaitEvent on device %d", index_);
  }
  bool passed(DeviceEvent event) override {
    const Current current(driver_, context_);
    const CuResult code = driver_.event_query(event);
    if (code == kCuNotReady) return false;
    check_cuda(driver_, code, "cuEventQuery on device %d", index_);
    return true;
  }
  void await(DeviceEvent event) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.event_synchronize(event), "waiting for a copy on device %d", index_);
  }
  void synchronize(DeviceStream stream) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.stream_synchronize(stream), "cuStreamSynchronize on device %d", index_);
  }
  void settle() override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.context_synchronize(), "cuCtxSynchronize on device %d", index_);
  }
  DeviceAddress allocate(size_t bytes) override {
    const Current current(driver_, context_);
    CuPointer address = 0;
    check_cuda(driver_, driver_.memory_allocate(&address, bytes), "cuMemAlloc of %zu bytes on device %d", bytes,
               index_);
    return address;
  }
  void release(DeviceAddress address) noexcept override {
    const TryCurrent current(driver_, context_);
    if (current.ok()) driver_.memory_free(address);
  }
  void* allocate_pinned(size_t bytes) override {
    const Current current(driver_, context_);
    void* memory = nullptr;
    check_cuda(driver_, driver_.host_allocate(&memory, bytes, kPortableHost), "cuMemHostAlloc of %zu bytes", bytes);
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    const TryCurrent current(driver_, context_);
    if (current.ok()) driver_.host_free(memory);
  }
  void pin(void* memory, size_t bytes) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.host_register(memory, bytes, kPortableHost),
               "cuMemHostRegister of %zu bytes of an arena (is the limit of locked memory high enough?)", bytes);
  }
  void unpin(void* memory) noexcept override {
    const TryCurrent current(driver_, context_);
    if (current.ok()) driver_.host_unregister(memory);
  }
  void download(void* to, DeviceAddress from, size_t bytes, DeviceStream stream) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.copy_to_host(to, from, bytes, stream),
               "cuMemcpyDtoHAsync of %zu bytes from %#llx on device %d", bytes, ull{from}, index_);
  }
  void upload(DeviceAddress to, const void* from, size_t bytes, DeviceStream stream) override {
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.copy_to_device(to, from, bytes, stream),
               "cuMemcpyHtoDAsync of %zu bytes to %#llx on device %d", bytes, ull{to}, index_);
  }
  bool can_gather() override {
    if (kernel_ != nullptr || kGatherImageBytes == 0) return kernel_ != nullptr;
    const Current current(driver_, context_);
    check_cuda(driver_, driver_.module_load(&module_, kGatherImage), "loading the gather kernel on device %d", index_);
    check_cuda(driver_, driver_.module_function(&kernel_, module_, kGatherKernel), "finding the gather kernel");
    return true;
  }
  void gather(DeviceAddress tiles, uint32_t count, DeviceAddress staging, DeviceStream stream) override {
    const Current current(driver_, context_);
    void* parameters[] = {&tiles, &count, &staging};
    const unsigned blocks = count < kGatherBlocks ? count : kGatherBlocks;
    check_cuda(driver_,
               driver_.launch(kernel_, blocks, 1, 1, kGatherThreads, 1, 1, 0, stream, parameters, nullptr),
               "launching the gather kernel over %u tiles on device %d", count, index_);
  }

 private:
  void prepare() {
    const Current current(driver_, context_);
    int highest = 0;
    check_cuda(driver_, driver_.stream_priorities(&priority_, &highest), "cuCtxGetStreamPriorityRange");
  }
  void close() noexcept {
    if (module_ != nullptr) {
      const TryCurrent current(driver_, context_);
      if (current.ok()) driver_.module_unload(module_);
    }
    driver_.context_release(device_);
  }

  const CudaDriver& driver_;
  const int index_;
  CuDeviceIndex device_ = 0;
  void* context_ = nullptr;
  void* module_ = nullptr;
  void* kernel_ = nullptr;
  int priority_ = 0;  // the lowest
};

}  // namespace

std::unique_ptr<Device> open_cuda_device(int index) {
  std::string why;
  const CudaDriver* driver = find_cuda_driver(&why);
  if (driver == nullptr) raise(FF_EDEVICE, "CUDA device %d: %s", index, why.c_str());
  check_cuda(*driver, driver->init(0), "cuInit");
  int count = 0;
  check_cuda(*driver, driver->device_count(&count), "cuDeviceGetCount");
  if (index < 0 || index >= count) raise(FF_EDEVICE, "CUDA device %d: this process sees %d devices", index, count);
  return std::make_unique<CudaDevice>(*driver, index);
}

std::string cuda_build_info() {
  std::string why;
  const CudaDriver* driver = find_cuda_driver(&why);
  const char* kernel = kGatherImageBytes > 0 ? "true" : "false";
  char text[512];
  int version = 0;
  if (driver != nullptr && driver->driver_version(&version) == kCuSuccess) {
    std::snprintf(text, sizeof text, R"({"driver": "%d.%d", "gather_kernel": %s})", version / 1000,
                  version % 1000 / 10, kernel);
    return text;
  }
  for (char& c : why) {
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32) c = '\'';  // it goes into JSON
  }
  std::snprintf(text, sizeof text, R"({"driver": null, "why": "%.300s", "gather_kernel": %s})", why.c_str(), kernel);
  return text;
}

}  // namespace ff
