// The module memoir_fast._C: the schemas of the ops, and what is not a tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "cpu_path.h"

namespace memoir {
namespace {

const std::vector<const char*> kSchemas = {
    "mask_overlap(Tensor query, Tensor store) -> Tensor",
    "mask_match(Tensor query, Tensor store, Tensor count, Tensor min_overlap) -> (Tensor, Tensor)",
    "tophash(Tensor feature, int k, Tensor permutation) -> (Tensor, Tensor)",
    "mask_columns(Tensor mask, int k) -> Tensor",
    "prompt_feature(Tensor x, Tensor prompt_mask, Tensor mu) -> Tensor",
    "masked_linear(Tensor x, Tensor memory, Tensor columns, Tensor route) -> Tensor",
    "masked_linear_add_(Tensor(a!) base, Tensor x, Tensor memory, Tensor columns, Tensor route) -> ()",
};

std::vector<std::string> ops(const std::string& backend) {
  if (backend == "cpu") {
    return {"mask_overlap",   "mask_match",    "tophash",           "mask_columns",
            "prompt_feature", "masked_linear", "masked_linear_add_"};
  }
#ifdef MEMOIR_FAST_CUDA
  if (backend == "cuda") {
    return {"mask_overlap",   "mask_match",    "tophash",           "mask_columns",
            "prompt_feature", "masked_linear", "masked_linear_add_"};
  }
#endif
  return {};
}

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

STABLE_TORCH_LIBRARY(memoir_fast_native, m) {
  for (const char* schema : kSchemas) m.def(schema);
}

}  // namespace memoir

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of memoir_fast. Its tensor ops are in torch.ops.memoir_fast_native.";
  m.def("build_info", &memoir::build_info, "Compiler, torch and CUDA that the extension was built with.");
  m.def("cpu_features", &memoir::cpu_features, "Which CPU paths this machine can run.");
  m.def("ops", &memoir::ops, pybind11::arg("backend"), "The ops that have a kernel for 'cpu' or 'cuda'.");
  m.def("cpu_path", [] { return memoir::name_of(memoir::cpu_path()); }, "The CPU path in force.");
  m.def("set_cpu_path", &memoir::set_cpu_path, pybind11::arg("path"),
        "Sets the CPU path of this process: auto, avx512, avx2 or portable.");
  const char* forced = std::getenv("MEMOIR_FAST_CPU");
  if (forced != nullptr && *forced != '\0') memoir::set_cpu_path(forced);
}
