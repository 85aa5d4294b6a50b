#include "mask_columns_kernel.cuh"
#include "mask_columns_launch.h"
#include "overlap_launch.cuh"

namespace memoir {

cudaError_t launch_mask_columns(const ColumnsCall& call, const Gpu& gpu, cudaStream_t stream) {
  return launch_dependent(list_columns, call.rows, kColumnsThreads, gpu, stream, call);
}

}  // namespace memoir
