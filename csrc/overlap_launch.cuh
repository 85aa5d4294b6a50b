// The launch of one scan, for mask_overlap.cu and mask_match.cu.
#pragma once

#include <algorithm>

#include "overlap_kernels.cuh"
#include "overlap_launch.h"

namespace memoir {

// Small blocks where large ones would leave multiprocessors idle; no more blocks than run at once otherwise.
template <int kQueries, bool kMatch>
void launch_popc(const Scan& scan, const Gpu& gpu, cudaStream_t stream) {
  const int64_t resident = static_cast<int64_t>(gpu.multiprocessors) * kResidentBlocks;
  int threads = kScanThreads;
  while (threads > 2 * kWarp && (scan.rows + threads / kRowLanes - 1) / (threads / kRowLanes) < resident) threads /= 2;
  const int64_t rows_per_block = threads / kRowLanes;
  const int64_t needed = std::max<int64_t>(1, (scan.rows + rows_per_block - 1) / rows_per_block);
  const int64_t blocks = std::min(needed, std::max<int64_t>(1, resident * (kScanThreads / threads)));
  popc_scan<kQueries, kMatch><<<static_cast<unsigned int>(blocks * scan.query_tiles), threads, 0, stream>>>(scan);
}

template <class T, bool kMatch>
void launch_mma(const Scan& scan, cudaStream_t stream) {
  const int64_t blocks = std::max<int64_t>(1, (scan.rows + static_cast<int64_t>(T::kRows) - 1) / T::kRows);
  mma_scan<T, kMatch><<<static_cast<unsigned int>(blocks * scan.query_tiles), T::kThreads, 0, stream>>>(scan);
}

template <bool kMatch>
cudaError_t launch(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  switch (kernel) {
    case Kernel::popc1:
      launch_popc<1, kMatch>(scan, gpu, stream);
      break;
    case Kernel::popc2:
      launch_popc<2, kMatch>(scan, gpu, stream);
      break;
    case Kernel::popc4:
      launch_popc<4, kMatch>(scan, gpu, stream);
      break;
    case Kernel::popc8:
      launch_popc<8, kMatch>(scan, gpu, stream);
      break;
    case Kernel::mma_small:
      launch_mma<SmallTiling, kMatch>(scan, stream);
      break;
    case Kernel::mma_large:
      launch_mma<LargeTiling, kMatch>(scan, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace memoir
