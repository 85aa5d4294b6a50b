// What the residual product asks of its arguments, on every device.
#pragma once

#include "checks.h"

namespace memoir {

inline void require_linear(const Tensor& x, const Tensor& memory, const Tensor& columns, const Tensor& route) {
  require(x.dim() == 3, "x must be [B, S, D], got ", shape_of(x));
  require_float("x", x);
  require_tensor("memory", memory, x.scalar_type(), "P * D, O", {-1, -1});
  require(x.size(2) > 0 && memory.size(0) > 0 && memory.size(0) % x.size(2) == 0,
          "memory must be whole pages of D = ", x.size(2), " rows, got ", shape_of(memory));
  require_tensor("columns", columns, ScalarType::Int, "C, k", {-1, -1});
  require_tensor("route", route, ScalarType::Int, "B", {x.size(0)});
  require(1 <= columns.size(1) && columns.size(1) <= x.size(2), "columns must be [C, k] with 1 <= k <= D = ",
          x.size(2), ", got ", shape_of(columns));
  require_device("memory", memory, x);
  require_device("columns", columns, x);
  require_device("route", route, x);
}

inline void require_base(const Tensor& base, const Tensor& x, const Tensor& memory) {
  require_tensor("base", base, x.scalar_type(), "B, S, O", {x.size(0), x.size(1), memory.size(1)});
  require_device("base", base, x);
  for (int64_t axis = 0; axis < 3; ++axis) {
    require(base.size(axis) < 2 || base.stride(axis) != 0, "base must not share memory between its elements");
  }
}

}  // namespace memoir
