// The launch of one scan.
#pragma once

#include <algorithm>

#include "overlap_kernels.cuh"
#include "launch.h"

namespace memoir {

// Where the device can, `kernel` starts before the one ahead of it on the stream has ended, and waits for that itself.
template <class... Parameters, class... Arguments>
cudaError_t launch_dependent(void (*kernel)(Parameters...), int64_t blocks, int threads, const Gpu& gpu,
                             cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(static_cast<unsigned int>(threads));
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = gpu.dependent_launch ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

// Small blocks where large ones would leave multiprocessors idle; no more blocks than run at once otherwise.
template <int kQueries, bool kMatch>
cudaError_t launch_popc(const Scan& scan, const Gpu& gpu, cudaStream_t stream) {
  const int64_t resident = static_cast<int64_t>(gpu.multiprocessors) * kResidentBlocks;
  int threads = kScanThreads;
  while (threads > 2 * kWarp && (scan.rows + threads / kRowLanes - 1) / (threads / kRowLanes) < resident) threads /= 2;
  const int64_t rows_per_block = threads / kRowLanes;
  const int64_t needed = std::max<int64_t>(1, (scan.rows + rows_per_block - 1) / rows_per_block);
  const int64_t blocks = std::min(needed, std::max<int64_t>(1, resident * (kScanThreads / threads)));
  return launch_dependent(popc_scan<kQueries, kMatch>, blocks * scan.query_tiles, threads, gpu, stream, scan);
}

template <class T, bool kMatch>
cudaError_t launch_mma(const Scan& scan, cudaStream_t stream) {
  const int64_t blocks = std::max<int64_t>(1, (scan.rows + static_cast<int64_t>(T::kRows) - 1) / T::kRows);
  mma_scan<T, kMatch><<<static_cast<unsigned int>(blocks * scan.query_tiles), T::kThreads, 0, stream>>>(scan);
  return cudaGetLastError();
}

template <bool kMatch>
cudaError_t launch(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  switch (kernel) {
    case Kernel::popc1:
      return launch_popc<1, kMatch>(scan, gpu, stream);
    case Kernel::popc2:
      return launch_popc<2, kMatch>(scan, gpu, stream);
    case Kernel::popc4:
      return launch_popc<4, kMatch>(scan, gpu, stream);
    case Kernel::popc8:
      return launch_popc<8, kMatch>(scan, gpu, stream);
    case Kernel::mma_small:
      return launch_mma<SmallTiling, kMatch>(scan, stream);
    case Kernel::mma_large:
      return launch_mma<LargeTiling, kMatch>(scan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace memoir
