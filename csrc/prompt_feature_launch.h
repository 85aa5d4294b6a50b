// The launch of prompt_feature on a GPU, for a caller that knows torch and not CUDA.
#pragma once

#include "prompt_feature_call.h"
#include "overlap_launch.h"

namespace memoir {

// Asynchronous on `stream`; x must begin on a 16-byte boundary and its strides be whole pieces of 16 bytes.
cudaError_t launch_prompt_feature(const FeatureCall& call, FeatureType type, const Gpu& gpu, cudaStream_t stream);

}  // namespace memoir
