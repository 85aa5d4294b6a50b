// What every op of the extension asks of its arguments. A raw call must be as safe as one through memoir_fast.ops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace memoir {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) text << (axis ? ", " : "") << tensor.size(axis);
  text << ']';
  return text.str();
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "another dtype";
  }
}

// `shape` as words, e.g. "B W"; a size below 0 stands for any.
inline void require_tensor(const char* name, const Tensor& tensor, ScalarType dtype, const char* shape,
                           std::initializer_list<int64_t> sizes) {
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (int64_t size : sizes) {
    fits = fits && (size < 0 || tensor.size(axis) == size);
    ++axis;
  }
  if (!fits) {
    fail(name, " must be ", name_of(dtype), " [", shape, "], got ", name_of(tensor.scalar_type()), " ",
         shape_of(tensor));
  }
}

inline void require_device(const char* name, const Tensor& tensor, const Tensor& like) {
  const bool same = tensor.is_cpu() ? like.is_cpu()
                                    : tensor.is_cuda() && like.is_cuda() &&
                                          tensor.get_device_index() == like.get_device_index();
  require(same, name, " must be on the same device as the first tensor");
}

// A float dtype that the engine computes in.
inline void require_float(const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  require(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
              dtype == ScalarType::BFloat16,
          name, " must be float16, bfloat16, float32 or float64, got ", name_of(dtype));
}

// The tensor itself where the elements of a row lie side by side, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline void require_masks(const Tensor& query, const Tensor& store) {
  require_tensor("query", query, ScalarType::Int, "B, W", {-1, -1});
  const int64_t words = query.size(1);
  require_tensor("store", store, ScalarType::Int, "N, W", {-1, words});
  require(words > 0 && words % 4 == 0, "W must be a positive multiple of 4 words, got ", words);
  require(store.size(0) <= std::numeric_limits<int32_t>::max() - 1, "store has too many rows: ", store.size(0));
  require(words <= std::numeric_limits<int32_t>::max() / 32, "W is too large: ", words);
  require_device("store", store, query);
}

inline void require_match(const Tensor& query, const Tensor& store, const Tensor& count, const Tensor& min_overlap) {
  require_masks(query, store);
  require_tensor("count", count, ScalarType::Int, "", {});
  require_device("count", count, query);
  require_tensor("min_overlap", min_overlap, ScalarType::Int, "C", {store.size(0)});
  require_device("min_overlap", min_overlap, query);
}

inline void require_routes(const Tensor& mask, const Tensor& page, const Tensor& route, int64_t k, int64_t width) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  require_tensor("mask", mask, ScalarType::Int, "C, W", {-1, -1});
  const int64_t words = mask.size(1);
  require(words <= kLargest / 32 && mask.size(0) <= kLargest, "mask is too large: ", shape_of(mask));
  require_tensor("page", page, ScalarType::Int, "C", {mask.size(0)});
  require_device("page", page, mask);
  require_tensor("route", route, ScalarType::Int, "B", {-1});
  require_device("route", route, mask);
  require(k >= 1 && k <= words * 32, "k must lie in [1, 32 W = ", words * 32, "], got ", k);
  require(width >= 1 && width <= kLargest, "width must lie in [1, ", kLargest, "], got ", width);
  require(mask.size(0) > 0 || route.size(0) == 0, "mask must have a row at least, where there is a route");
}

inline void require_codes(const Tensor& row, const Tensor& overlap, const Tensor& owner, const Tensor& room) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  require_tensor("row", row, ScalarType::Int, "B, Q", {-1, -1});
  require(row.size(0) <= kLargest && row.size(1) <= kLargest, "row is too large: ", shape_of(row));
  require(row.size(1) > 0, "row must have a code at least, got ", shape_of(row));
  require_tensor("overlap", overlap, ScalarType::Int, "B, Q", {row.size(0), row.size(1)});
  require_device("overlap", overlap, row);
  require_tensor("owner", owner, ScalarType::Int, "C", {-1});
  require(owner.size(0) <= kLargest, "owner is too large: ", shape_of(owner));
  require_device("owner", owner, row);
  require_tensor("room", room, ScalarType::Int, "C", {owner.size(0)});
  require_device("room", room, row);
  require(owner.size(0) > 0 || row.size(0) == 0, "owner must have a row at least, where there is a prompt");
}

}  // namespace memoir
