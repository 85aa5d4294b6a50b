#include <map>
#include <mutex>
#include <utility>

#include "clear_scratch.cuh"
#include "overlap_launch.cuh"
#include "scratch_pool.h"

namespace memoir {
namespace {

__device__ __align__(128) unsigned long long scratch_memory[ScratchPool::kWords];  // zero when the code is loaded

}  // namespace

int64_t plan_scratch(Scan& scan, Kernel kernel, const Gpu& gpu) {
  scan.collect = is_popc(kernel) && scan.query_tiles == 1;
  if (scan.collect) return popc_grid(scan, gpu).blocks * queries_per_tile(kernel);
  return scan.queries + (scan.query_tiles + int64_t{1}) / 2;
}

cudaError_t find_scratch(int device, cudaStream_t stream, int64_t words, unsigned long long** scratch) {
  *scratch = nullptr;
  cudaStreamCaptureStatus capture{};
  unsigned long long id = 0;
  cudaError_t error = cudaStreamIsCapturing(stream, &capture);
  if (error == cudaSuccess) error = cudaStreamGetId(stream, &id);  // unlike a handle, never used again

  static std::mutex choosing;
  static std::map<int, std::pair<void*, ScratchPool>> pools;
  const std::lock_guard<std::mutex> lock(choosing);
  auto& [begin, pool] = pools[device];
  if (error == cudaSuccess && begin == nullptr) error = cudaGetSymbolAddress(&begin, scratch_memory);
  if (error != cudaSuccess) return error;
  const int64_t place =
      capture == cudaStreamCaptureStatusNone ? pool.of_stream(id, words) : pool.of_captured_call(words);
  if (place != ScratchPool::kNone) *scratch = static_cast<unsigned long long*>(begin) + place;
  return cudaSuccess;
}

cudaError_t clear_scratch(unsigned long long* scratch, int64_t words, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  return gpu.dependent_launch && is_popc(kernel)
             ? launch_dependent(clear_words, 1, kClearThreads, gpu, stream, scratch, words)
             : cudaMemsetAsync(scratch, 0, words * sizeof *scratch, stream);
}

cudaError_t launch_mask_match(const Scan& scan, Kernel kernel, const Gpu& gpu, cudaStream_t stream) {
  return launch<true>(scan, kernel, gpu, stream);
}

}  // namespace memoir
