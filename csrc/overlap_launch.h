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

// The grid of a scan of few queries: `blocks` for every tile of queries.
struct PopcGrid {
  int64_t blocks;
  int threads;
};
PopcGrid popc_grid(const Scan& scan, const Gpu& gpu);

// Sets scan.collect, and says how many 64-bit words scan.scratch must have.
int64_t plan_scratch(Scan& scan, Kernel kernel, const Gpu& gpu);

// Memory of the device, zeros, for the scans of `stream`, or, while that is being captured, for the one captured call.
// nullptr where too much has been handed out.
cudaError_t find_scratch(int device, cudaStream_t stream, int64_t words, unsigned long long** scratch);

// Queues zeros for memory that find_scratch has not given.
cudaError_t clear_scratch(unsigned long long* scratch, int64_t words, Kernel kernel, const Gpu& gpu, cudaStream_t stream);

// Both run asynchronously on `stream`; `scan.query_tiles` must be set from queries_per_tile.
cudaError_t launch_mask_overlap(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
