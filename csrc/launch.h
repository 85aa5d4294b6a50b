// Launches of the GPU kernels, for a caller that knows torch and not CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "hash_calls.h"
#include "masked_linear_call.h"
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

// Both run asynchronously on `stream`; `scan.query_tiles` must be set from queries_per_tile. The match
// clears its scratch memory first.
cudaError_t launch_mask_overlap(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream);

// Asynchronous on `stream`; x must begin on a 16-byte boundary and its strides be whole pieces of 16 bytes.
cudaError_t launch_prompt_feature(const FeatureCall& call, FeatureType type, const Gpu& gpu, cudaStream_t stream);

// Asynchronous on `stream`; width at most kWidestHash.
cudaError_t launch_tophash(const HashCall& call, const Gpu& gpu, cudaStream_t stream);

// Asynchronous on `stream`.
cudaError_t launch_mask_columns(const ColumnsCall& call, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_decision(const CodesCall& call, const Gpu& gpu, cudaStream_t stream);

enum class LinearType { float32, float16, bfloat16 };

// Tokens that are served without tensor cores; more of float32 are not served at all.
int most_streamed(LinearType type);

// Fills in how a call is cut up: `splits`, and `tile_rows`, 0 where it is served without tensor cores. The caller then
// provides call.packed of packed_row two-byte values per token, where tile_rows is not 0.
void plan_call(LinearCall& call, LinearType type);

// Asynchronously on `stream`; needs a device and code of compute capability 9.0 at least.
cudaError_t launch_masked_linear(const LinearCall& call, LinearType type, cudaStream_t stream);

}  // namespace memoir
