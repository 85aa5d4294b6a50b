// The module memoir_fast._C: which ops are implemented, and what is not a tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <string>

#include "cpu_path.h"
#include "registry.h"

namespace memoir {
namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info = {
      {"compiler", __VERSION__},
      {"torch_headers", MEMOIR_FAST_TORCH},
      {"torch_target", MEMOIR_FAST_TORCH_TARGET},
      {"cuda", ""},
      {"cuda_architectures", ""},
  };
#ifdef MEMOIR_FAST_CUDA
  info["cuda"] = MEMOIR_FAST_CUDA;
  info["cuda_architectures"] = MEMOIR_FAST_CUDA_ARCHITECTURES;
#endif
  return info;
}

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
  for (CpuPath path : {CpuPath::avx512, CpuPath::avx2, CpuPath::portable}) features[name_of(path)] = cpu_supports(path);
  return features;
}

}  // namespace

Implemented& implemented(const std::string& device) {
  static std::map<std::string, Implemented> by_device;
  return by_device[device];
}

}  // namespace memoir

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of memoir_fast. Its tensor ops are in torch.ops.memoir_fast_native.";
  m.def("build_info", &memoir::build_info, "Compiler, torch and CUDA that the extension was built with.");
  m.def("cpu_features", &memoir::cpu_features, "Which CPU paths this machine can run.");
  m.def("ops", &memoir::implemented, pybind11::arg("backend"),
        "The ops that have a kernel for 'cpu' or 'cuda', each with its arguments' types.");
  m.def("cpu_path", [] { return memoir::name_of(memoir::cpu_path()); }, "The CPU path in force.");
  m.def("set_cpu_path", &memoir::set_cpu_path, pybind11::arg("path"),
        "Sets the CPU path of this process: auto, avx512, avx2 or portable.");
  const char* forced = std::getenv("MEMOIR_FAST_CPU");
  if (forced != nullptr && *forced != '\0') memoir::set_cpu_path(forced);
}
