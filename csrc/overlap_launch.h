// Launches of the GPU kernels, for a caller that knows torch and not CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "scan.h"

namespace memoir {

// What a launch has to know about a device and the code that runs on it. Code may be older than the device, where it
// was compiled there from PTX: a feature needs both.
struct Gpu {
  int multiprocessors;
  bool bit_mma;           // one-bit matrix products in hardware
  bool dependent_launch;  // kernels that wait for their predecessors themselves
};
cudaError_t describe(int device, Gpu& gpu);  // `device` must be the current one

// Which kernel serves a batch, and how many queries one of its tiles holds.
enum class Kernel { popc1, popc2, popc4, popc8, mma_small, mma_large };
Kernel choose_kernel(int64_t queries, const Gpu& gpu);
int queries_per_tile(Kernel kernel);
inline bool is_popc(Kernel kernel) { return kernel < Kernel::mma_small; }

// Both run asynchronously on `stream`; `scan.query_tiles` must be set from queries_per_tile. mask_match
// clears its scratch memory first.
cudaError_t launch_mask_overlap(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
