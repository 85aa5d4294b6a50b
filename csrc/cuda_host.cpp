#include "cuda_host.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <mutex>

// In libtorch_cuda, so absent where torch has no CUDA. Weak: this file loads there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace memoir {

void check(cudaError_t error) { require(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error)); }

cudaStream_t current_stream(int32_t device) {
  using Shim = decltype(&aoti_torch_get_current_cuda_stream);
  // A torch that loads libtorch_cuda apart from libtorch leaves the weak reference empty: look in the loaded library.
  static const Shim shim = [] {
    if (aoti_torch_get_current_cuda_stream != nullptr) return &aoti_torch_get_current_cuda_stream;
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Shim>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  require(shim != nullptr, "this torch has no CUDA streams");
  void* stream = nullptr;
  require(shim(device, &stream) == TORCH_SUCCESS, "torch gave no current stream for device ", device);
  return static_cast<cudaStream_t>(stream);
}

Gpu gpu_of(int32_t device) {
  static std::mutex asking;
  static std::map<int32_t, Gpu> known;
  const std::lock_guard<std::mutex> lock(asking);
  auto found = known.find(device);
  if (found == known.end()) {
    Gpu gpu{};
    check(describe(device, gpu));
    found = known.emplace(device, gpu).first;
  }
  return found->second;
}

}  // namespace memoir
