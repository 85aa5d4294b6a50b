#include "overlap_launch.cuh"
#include "prompt_feature_kernel.cuh"

namespace memoir {
namespace {

template <class T>
cudaError_t launch_of(const FeatureCall& call, const Gpu& gpu, cudaStream_t stream) {
  constexpr int kColumns = FeatureShared<T>::kColumns;
  const int tiles = (call.width + kColumns - 1) / kColumns;
  return launch_dependent(feature_columns<T>, int64_t{call.batch} * tiles, kFeatureThreads, gpu, stream, call, tiles);
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

}  // namespace memoir
