#include <cmath>

#include "overlap_launch.cuh"
#include "tophash_kernel.cuh"
#include "tophash_launch.h"

namespace memoir {

int reach_of(int64_t k, int64_t width) {
  const double most = static_cast<double>(width) - 0.5, wanted = static_cast<double>(k);
  const double tail = -std::log((wanted < most ? wanted : most) / static_cast<double>(width));
  return static_cast<int>((0.5772 + std::log(tail)) / std::log(2.0) * (1 << 23));
}

namespace {

template <int kThreads, int kVectors>
cudaError_t launch_rows(const HashCall& call, const Gpu& gpu, cudaStream_t stream) {
  return launch_dependent(hash_row<kThreads, kVectors>, call.rows, kThreads, gpu, stream, call);
}

}  // namespace

cudaError_t launch_tophash(const HashCall& call, const Gpu& gpu, cudaStream_t stream) {
  if (call.width <= 2048) return launch_rows<256, 2>(call, gpu, stream);
  if (call.width <= 8192) return launch_rows<512, 4>(call, gpu, stream);
  return call.width <= 14336 ? launch_rows<512, 7>(call, gpu, stream) : launch_rows<512, 8>(call, gpu, stream);
}

}  // namespace memoir
