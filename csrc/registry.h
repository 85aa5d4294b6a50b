// What the extension implements: Python reads it, and defines an op only where its schema asks for these very arguments.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <map>
#include <string>

namespace memoir {

// An op's arguments as a schema writes their types, by the op's name.
using Implemented = std::map<std::string, std::string>;

Implemented& implemented(const std::string& device);  // "cpu" or "cuda"

inline const char* type_name(const torch::stable::Tensor*) { return "Tensor"; }
inline const char* type_name(const int64_t*) { return "int"; }

template <class Result, class... Arguments>
std::string arguments_of(Result (*)(Arguments...)) {
  std::string list;
  const auto add = [&list](const char* type) { list += list.empty() ? type : std::string(", ") + type; };
  (add(type_name(static_cast<const std::decay_t<Arguments>*>(nullptr))), ...);
  return list;
}

}  // namespace memoir

// In the body of STABLE_TORCH_LIBRARY_IMPL: the function of that name implements the op of that name.
#define MEMOIR_IMPLEMENTS(library, device, op)     \
  library.impl(#op, TORCH_BOX(&op));               \
  implemented(device)[#op] = arguments_of(&op)
