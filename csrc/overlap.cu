// The launches of the scans over the stored masks.
#include "clear_scratch.cuh"
#include "overlap_launch.cuh"

namespace memoir {

cudaError_t describe(int device, Gpu& gpu) {
  int major = 0;
  cudaFuncAttributes code{};
  cudaError_t error = cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, popc_scan<1, false>);
  gpu.bit_mma = (major == 8 || major == 9) && code.ptxVersion >= 80;  // HAS_BIT_MMA
  gpu.dependent_launch = code.ptxVersion >= 90;                       // HAS_DEPENDENT_LAUNCH
  return error;
}

Kernel choose_kernel(int64_t queries, const Gpu& gpu) {
  if (queries <= 1) return Kernel::popc1;
  if (queries <= 2) return Kernel::popc2;
  if (queries <= 3 || (queries <= 4 && !gpu.bit_mma)) return Kernel::popc4;
  if (!gpu.bit_mma) return Kernel::popc8;
  return queries <= SmallTiling::kQueries ? Kernel::mma_small : Kernel::mma_large;
}

int queries_per_tile(Kernel kernel) {
  switch (kernel) {
    case Kernel::popc1:
      return 1;
    case Kernel::popc2:
      return 2;
    case Kernel::popc4:
      return 4;
    case Kernel::popc8:
      return 8;
    case Kernel::mma_small:
      return SmallTiling::kQueries;
    case Kernel::mma_large:
      break;
  }
  return LargeTiling::kQueries;
}

cudaError_t launch_mask_overlap(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  return launch<false>(scan, kernel, gpu, stream);
}

cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  const int64_t words = scan.scratch_words();
  const bool dependent = gpu.dependent_launch && is_popc(kernel);
  const cudaError_t cleared = dependent
                                  ? launch_dependent(clear_scratch, 1, kClearThreads, gpu, stream, scan.best, words)
                                  : cudaMemsetAsync(scan.best, 0, words * sizeof *scan.best, stream);
  return cleared == cudaSuccess ? launch<true>(scan, kernel, gpu, stream) : cleared;
}

}  // namespace memoir
