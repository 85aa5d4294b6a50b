// The module memoir_fast._C: which ops are implemented, and what is not a tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <string>

#include "cpu_path.h"
#include "overlap_cpu.h"
#include "registry.h"
#include "trial.h"

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

pybind11::dict cpu_trials() {
  pybind11::dict found;
  for (const auto& [what, trial] : trial_reports()) {
    pybind11::dict reached;
    for (const auto& [way, rate] : trial.reached) reached[way.c_str()] = rate / 1e9;
    found[what.c_str()] = pybind11::dict();
    found[what.c_str()]["reached"] = reached;
    found[what.c_str()]["taken"] = trial.taken;
  }
  return found;
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
  m.def("cpu_trials", &memoir::cpu_trials,
        "What the calls of this process have told of the quickest ways, by what they are about: `reached`, GB/s by way, "
        "0 of one that had no turn; `taken`, the way that serves from now on, '' while that is not known.");
  m.def("force_cpu_search", &memoir::force_scan, pybind11::arg("way"),
        "Lets every search for one query go the way of this name, one of `cpu_trials`; '' ends that.");
  const char* forced = std::getenv("MEMOIR_FAST_CPU");
  if (forced != nullptr && *forced != '\0') memoir::set_cpu_path(forced);
}
