// masked_linear and its in-place form on a GPU as torch ops. Nothing here waits for the device, and nothing that is
// allocated depends on values there: a call can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda_host.h"
#include "masked_linear_checks.h"
#include "launch.h"
#include "registry.h"

namespace memoir {
namespace {

constexpr int64_t kPiece = 16;            // bytes
constexpr int64_t kMostRows = 512;        // tokens of all sequences together
constexpr int64_t kWidest = 1 << 17;      // a block's share of the columns has to fit in shared memory

LinearType type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return LinearType::float32;
    case ScalarType::Half:
      return LinearType::float16;
    case ScalarType::BFloat16:
      return LinearType::bfloat16;
    default:
      fail("x must be float16, bfloat16 or float32 on a GPU, got ", name_of(x.scalar_type()));
  }
}

void serve(const Tensor& out, const Tensor& x, const Tensor& memory, const Tensor& columns, const Tensor& route,
           bool add) {
  if (out.numel() == 0) return;
  const LinearType type = type_of(x);
  const int64_t size = type == LinearType::float32 ? 4 : 2, rows = x.size(0) * x.size(1);
  require(rows <= (size == 4 ? most_streamed(type) : kMostRows), "too many tokens for this kernel: ", rows);
  require(x.size(0) <= kMostSequences, "too many sequences for this kernel: ", x.size(0));
  require(x.size(2) <= kWidest && memory.size(1) <= std::numeric_limits<int32_t>::max() / 2, "too wide: D = ", x.size(2),
          ", O = ", memory.size(1));
  require(memory.size(0) <= std::numeric_limits<int32_t>::max(), "too many rows of memory: ", memory.size(0));
  require(memory.stride(1) == 1 && memory.stride(0) * size % kPiece == 0 &&
              reinterpret_cast<uintptr_t>(memory.const_data_ptr()) % kPiece == 0,
          "rows of memory must be dense and start on 16-byte boundaries");
  require(memory.size(1) * size % kPiece == 0, "rows of memory must hold a multiple of 16 bytes, got ", memory.size(1),
          " values");
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  require(gpu_of(device).dependent_launch, "the GPU must have compute capability 9.0 or later");

  LinearCall call{};
  call.x = x.const_data_ptr();
  call.memory = memory.const_data_ptr();
  call.columns = static_cast<const int32_t*>(columns.const_data_ptr());
  call.route = static_cast<const int32_t*>(route.const_data_ptr());
  call.out = out.mutable_data_ptr();
  call.x_batch = x.stride(0), call.x_token = x.stride(1), call.x_input = x.stride(2);
  call.memory_row = memory.stride(0) * size / kPiece;
  call.columns_row = columns.stride(0), call.columns_step = columns.stride(1), call.route_step = route.stride(0);
  call.out_batch = out.stride(0), call.out_token = out.stride(1), call.out_output = out.stride(2);
  call.batch = static_cast<int>(x.size(0)), call.tokens = static_cast<int>(x.size(1));
  call.width = static_cast<int>(x.size(2)), call.outputs = static_cast<int>(memory.size(1));
  call.k = static_cast<int>(columns.size(1)), call.edits = static_cast<int>(columns.size(0));
  call.rows = static_cast<int>(memory.size(0));
  call.add = add;
  plan_call(call, type);
  if (call.tile_rows == 0) {
    check(launch_masked_linear(call, type, current_stream(device)));
    return;
  }
  const Tensor packed = torch::stable::new_empty(x, {rows, call.packed_row});
  call.packed = packed.mutable_data_ptr();
  check(launch_masked_linear(call, type, current_stream(device)));
}

Tensor masked_linear(const Tensor& x, const Tensor& memory, const Tensor& columns, const Tensor& route) {
  require_linear(x, memory, columns, route);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), memory.size(1)});
  serve(y, x, memory, columns, route, false);
  return y;
}

void masked_linear_add_(const Tensor& base, const Tensor& x, const Tensor& memory, const Tensor& columns,
                        const Tensor& route) {
  require_linear(x, memory, columns, route);
  require_base(base, x, memory);
  serve(base, x, memory, columns, route, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(memoir_fast_native, CUDA, m) {
  MEMOIR_IMPLEMENTS(m, "cuda", masked_linear);
  MEMOIR_IMPLEMENTS(m, "cuda", masked_linear_add_);
}

}  // namespace memoir
