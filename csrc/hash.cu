// The launches of the kernels that hash a prompt.
#include <cmath>

#include "code_route_kernel.cuh"
#include "launch.h"
#include "mask_columns_kernel.cuh"
#include "overlap_launch.cuh"
#include "prompt_feature_kernel.cuh"
#include "tophash_kernel.cuh"

namespace memoir {
namespace {

constexpr int64_t kEnoughBlocks = 100;  // to keep a GPU's memory busy

template <class T, int kPieces>
int64_t blocks_of(const FeatureCall& call) {
  constexpr int kColumns = FeatureShared<T, kPieces>::kColumns;
  return int64_t{call.batch} * ((call.width + kColumns - 1) / kColumns);
}

template <class T, int kPieces>
cudaError_t launch_of(const FeatureCall& call, const Gpu& gpu, cudaStream_t stream) {
  const int64_t blocks = blocks_of<T, kPieces>(call);
  return launch_dependent(feature_columns<T, kPieces>, blocks, kFeatureThreads, gpu, stream, call,
                          static_cast<int>(blocks / call.batch));
}

// Wide tiles where the prompts are short and so many that all threads of a block have tokens.
template <class T>
cudaError_t launch_of(const FeatureCall& call, const Gpu& gpu, cudaStream_t stream) {
  const auto fits = [&](int64_t turn, int64_t blocks) { return call.tokens <= turn && blocks >= kEnoughBlocks; };
  if (fits(FeatureShared<T, 128>::kTurnTokens, blocks_of<T, 128>(call))) return launch_of<T, 128>(call, gpu, stream);
  if (fits(FeatureShared<T, 32>::kTurnTokens, blocks_of<T, 32>(call))) return launch_of<T, 32>(call, gpu, stream);
  return launch_of<T, 8>(call, gpu, stream);
}

}  // namespace

cudaError_t launch_prompt_feature(const FeatureCall& call, FeatureType type, const Gpu& gpu, cudaStream_t stream) {
  switch (type) {
    case FeatureType::float32:
      return launch_of<float>(call, gpu, stream);
    case FeatureType::float16:
      return launch_of<Half>(call, gpu, stream);
    case FeatureType::bfloat16:
      return launch_of<BFloat16>(call, gpu, stream);
  }
  return cudaErrorInvalidValue;
}

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

cudaError_t launch_mask_columns(const ColumnsCall& call, const Gpu& gpu, cudaStream_t stream) {
  return launch_dependent(list_columns, call.rows, kColumnsThreads, gpu, stream, call);
}

cudaError_t launch_decision(const CodesCall& call, const Gpu& gpu, cudaStream_t stream) {
  const int64_t blocks = (int64_t{call.prompts} + kDecideThreads - 1) / kDecideThreads;
  return launch_dependent(decide, blocks, kDecideThreads, gpu, stream, call);
}

}  // namespace memoir
