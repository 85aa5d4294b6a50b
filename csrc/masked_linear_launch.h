// Launches of masked_linear's GPU kernels, for a caller that knows torch and not CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "masked_linear_call.h"

namespace memoir {

enum class LinearType { float32, float16, bfloat16 };

// Tokens that are served without tensor cores; more of float32 are not served at all.
int most_streamed(LinearType type);

// Fills in how a call is cut up: `splits`, and `tile_rows`, 0 where it is served without tensor cores. The caller then
// provides call.packed of packed_row two-byte values per token, where tile_rows is not 0.
void plan_call(LinearCall& call, LinearType type);

// Asynchronously on `stream`; needs a device and code of compute capability 9.0 at least.
cudaError_t launch_masked_linear(const LinearCall& call, LinearType type, cudaStream_t stream);

}  // namespace memoir
