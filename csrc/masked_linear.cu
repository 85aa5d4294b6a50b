#include <algorithm>
#include <atomic>

#include "launch.h"
#include "masked_linear_stream.cuh"
#include "masked_linear_tiles.cuh"

namespace memoir {
namespace {

constexpr int kClusterBlocks = 8;  // what every GPU that has clusters can run

// More shared memory than 48 KiB has to be asked for, once per kernel and device.
template <class Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes, std::atomic<uint64_t>& asked) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t own = uint64_t{1} << (device % 64);
  if (error != cudaSuccess || bytes <= 48 << 10 || (device < 64 && (asked.load() & own) != 0)) return error;
  int most = 0;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) asked |= own;
  return error == cudaSuccess ? error : cudaGetLastError();
}

// Starts before the kernel ahead of it on the stream has ended, and waits for that itself.
template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), int64_t blocks, int cluster, size_t shared, cudaStream_t stream,
                            const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned int>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(kLinearThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return cudaGetLastError();  // which forgets it: another backend's launches shall not be told
}

int64_t clusters_of(const LinearCall& call) { return (call.outputs + int64_t{kTileOutputs} - 1) / kTileOutputs; }

template <class T, int kRows>
cudaError_t launch_stream(const LinearCall& call, cudaStream_t stream) {
  static std::atomic<uint64_t> asked;
  constexpr size_t kShared = sizeof(Stream<T, kRows>);
  const cudaError_t error = allow_shared(stream_rows<T, kRows>, kShared, asked);
  if (error != cudaSuccess) return error;
  return launch_clusters(stream_rows<T, kRows>, clusters_of(call) * call.splits, call.splits, kShared, stream, call);
}

template <class T>
cudaError_t launch_stream(const LinearCall& call, cudaStream_t stream) {
  const int rows = call.batch * call.tokens;
  if constexpr (sizeof(T) == 4) {
    if (rows > 4) return launch_stream<T, 8>(call, stream);
  }
  return rows <= 1   ? launch_stream<T, 1>(call, stream)
         : rows <= 2 ? launch_stream<T, 2>(call, stream)
                     : launch_stream<T, 4>(call, stream);
}

// A block's share of the column list, in bytes: that of a dense pass is longer.
size_t list_bytes(const LinearCall& call) {
  const int64_t length = call.batch > 1 ? call.width : call.k;
  return round_up((length + call.splits - 1) / call.splits, kDepth) * sizeof(int);
}

template <class T, int kRows>
cudaError_t launch_tiles(const LinearCall& call, cudaStream_t stream) {
  static std::atomic<uint64_t> asked;
  const size_t shared = sizeof(Tile<T, kRows>) + list_bytes(call);
  cudaError_t error = allow_shared(multiply_tiles<T, kRows>, shared, asked);
  if (error != cudaSuccess) return error;
  const int parts = static_cast<int>((call.packed_row + kPackedByBlock - 1) / kPackedByBlock);
  const int64_t rows = static_cast<int64_t>(call.batch) * call.tokens;
  error = launch_clusters(pack_inputs, rows * parts, 1, sizeof(Pack), stream, call, parts);
  if (error != cudaSuccess) return error;
  return launch_clusters(multiply_tiles<T, kRows>, clusters_of(call) * call.splits, call.splits, shared, stream, call);
}

// Whether a block may have that much shared memory; compute capability 12 has 99 KiB, others 227.
cudaError_t may_share(size_t bytes, bool& may) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  may = bytes <= static_cast<size_t>(most);
  return error == cudaSuccess ? error : cudaGetLastError();
}

template <class T>
cudaError_t launch_tiles(const LinearCall& wanted, cudaStream_t stream) {
  LinearCall call = wanted;
  if (call.tile_rows > 32) {  // the columns of a wide layer leave less room
    bool fits = false;
    const cudaError_t error = may_share(sizeof(Tile<T, 64>) + list_bytes(call), fits);
    if (error != cudaSuccess) return error;
    call.tile_rows = fits ? 64 : 32;
  }
  return call.tile_rows == 16   ? launch_tiles<T, 16>(call, stream)
         : call.tile_rows == 32 ? launch_tiles<T, 32>(call, stream)
                                : launch_tiles<T, 64>(call, stream);
}

}  // namespace

int most_streamed(LinearType type) { return type == LinearType::float32 ? 8 : 2; }

void plan_call(LinearCall& call, LinearType type) {
  const int64_t rows = static_cast<int64_t>(call.batch) * call.tokens;
  call.splits = kClusterBlocks;
  call.tile_rows = rows <= most_streamed(type) ? 0 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  // A dense pass can be cheaper only where routes together have as many columns as memory, of one page, has rows.
  const bool may_be_dense = call.batch > 1 && call.rows == call.width && static_cast<int64_t>(call.batch) * call.k >= call.width;
  call.packed_row = round_up(may_be_dense ? call.width : call.k, kDepth);
}

cudaError_t launch_masked_linear(const LinearCall& call, LinearType type, cudaStream_t stream) {
  switch (type) {
    case LinearType::float32:
      return launch_stream<float>(call, stream);
    case LinearType::float16:
      return call.tile_rows == 0 ? launch_stream<Half>(call, stream) : launch_tiles<Half>(call, stream);
    case LinearType::bfloat16:
      return call.tile_rows == 0 ? launch_stream<BFloat16>(call, stream) : launch_tiles<BFloat16>(call, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace memoir
