#include "clear_scratch.cuh"
#include "overlap_launch.cuh"

namespace memoir {

cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  const int64_t words = scan.scratch_words();
  const bool dependent = gpu.dependent_launch && is_popc(kernel);
  const cudaError_t cleared = dependent
                                  ? launch_dependent(clear_scratch, 1, kClearThreads, gpu, stream, scan.best, words)
                                  : cudaMemsetAsync(scan.best, 0, words * sizeof *scan.best, stream);
  return cleared == cudaSuccess ? launch<true>(scan, kernel, gpu, stream) : cleared;
}

}  // namespace memoir
