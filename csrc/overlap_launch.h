// Launches of the GPU kernels, for a caller that knows torch and not CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "scan.h"

namespace memoir {

// What a launch has to know about the device.
struct Gpu {
  int multiprocessors;
  int major;  // compute capability
};

// Which kernel serves a batch, and how many queries one of its tiles holds.
enum class Kernel { popc1, popc2, popc4, popc8, mma_small, mma_large };
Kernel choose_kernel(int64_t queries, const Gpu& gpu);
int queries_per_tile(Kernel kernel);

// Both run asynchronously on `stream`; `scan.query_tiles` must be set from queries_per_tile. Return cudaGetLastError().
cudaError_t launch_mask_overlap(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
