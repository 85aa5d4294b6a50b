#include "overlap_launch.cuh"

namespace memoir {

cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  return launch<true>(scan, kernel, gpu, stream);
}

}  // namespace memoir
