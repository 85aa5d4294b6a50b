// The launch of tophash on a GPU, for a caller that knows torch and not CUDA.
#pragma once

#include "tophash_call.h"
#include "overlap_launch.h"

namespace memoir {

// Asynchronous on `stream`; width at most kWidestHash.
cudaError_t launch_tophash(const HashCall& call, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
