// The CUDA driver's functions, found at run time: the engine is built without CUDA and works without it.
//
// Declared here, not included: a build needs no CUDA headers. Names and types are those of cuda.h (12 and newer; the
// versioned symbols used have been stable since CUDA 4 and 7).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace ff {

using CuResult = int;  // CUresult; 0 is success
using CuDeviceIndex = int;
using CuPointer = unsigned long long;  // CUdeviceptr

constexpr CuResult kCuSuccess = 0, kCuNotReady = 600;

struct CudaDriver {
  CuResult (*init)(unsigned flags);
  CuResult (*driver_version)(int* version);
  CuResult (*device_count)(int* count);
  CuResult (*device_get)(CuDeviceIndex* device, int ordinal);
  CuResult (*error_name)(CuResult code, const char** text);
  CuResult (*error_string)(CuResult code, const char** text);
  CuResult (*context_retain)(void** context, CuDeviceIndex device);
  CuResult (*context_release)(CuDeviceIndex device);
  CuResult (*context_push)(void* context);
  CuResult (*context_pop)(void** context);
  CuResult (*context_synchronize)();
  CuResult (*capture_mode)(int* mode);  // exchanges the thread's with *mode
  CuResult (*stream_priorities)(int* lowest, int* highest);
  CuResult (*stream_create)(void** stream, unsigned flags, int priority);
  CuResult (*stream_destroy)(void* stream);
  CuResult (*stream_wait)(void* stream, void* event, unsigned flags);
  CuResult (*stream_synchronize)(void* stream);
  CuResult (*event_create)(void** event, unsigned flags);
  CuResult (*event_destroy)(void* event);
  CuResult (*event_record)(void* event, void* stream);
  CuResult (*event_query)(void* event);
  CuResult (*event_synchronize)(void* event);
  CuResult (*memory_allocate)(CuPointer* address, size_t bytes);
  CuResult (*memory_free)(CuPointer address);
  CuResult (*host_allocate)(void** memory, size_t bytes, unsigned flags);
  CuResult (*host_free)(void* memory);
  CuResult (*host_register)(void* memory, size_t bytes, unsigned flags);
  CuResult (*host_unregister)(void* memory);
  CuResult (*copy_to_host)(void* to, CuPointer from, size_t bytes, void* stream);
  CuResult (*copy_to_device)(CuPointer to, const void* from, size_t bytes, void* stream);
  CuResult (*module_load)(void** module, const void* image);
  CuResult (*module_unload)(void* module);
  CuResult (*module_function)(void** function, void* module, const char* name);
  CuResult (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                     unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                     void** extra);
};

// The driver, loaded at the first call that finds it; null: it is not there, and *why says so.
const CudaDriver* find_cuda_driver(std::string* why);

// Error(FF_EDEVICE): "WHAT: CUDA_ERROR_X (text)", if `code` is a failure.
void check_cuda(const CudaDriver& driver, CuResult code, const char* what, ...) __attribute__((format(printf, 3, 4)));

}  // namespace ff
