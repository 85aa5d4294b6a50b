// What a launch with much shared memory has to ask for first.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

namespace memoir {

// More shared memory than 48 KiB has to be asked for, once per kernel and device.
template <class Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes, std::atomic<uint64_t>& asked) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t own = uint64_t{1} << (device % 64);
  if (error != cudaSuccess || bytes <= 48 << 10 || (device < 64 && (asked.load() & own) != 0)) return error;
  int most = 0;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) asked |= own;
  return error;
}

}  // namespace memoir
