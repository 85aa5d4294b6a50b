// The launch of mask_columns on a GPU, for a caller that knows torch and not CUDA.
#pragma once

#include "mask_columns_call.h"
#include "overlap_launch.h"

namespace memoir {

// Asynchronous on `stream`.
cudaError_t launch_mask_columns(const ColumnsCall& call, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
