// Runs the GPU kernels of csrc/masked_linear_*.cuh on the CPU, for the test beside it.
#include <functional>
#include <mutex>
#include <vector>

#include "masked_linear_stream.cuh"
#include "masked_linear_tiles.cuh"

namespace {

using memoir::LinearCall;

int clusters_of(const LinearCall& call) { return (call.outputs + memoir::kTileOutputs - 1) / memoir::kTileOutputs; }

// What an earlier kernel leaves when this one has waited; only the first wait of any block brings it.
void set_predecessor(const std::function<void()>& leave) {
  static std::unique_ptr<std::once_flag> once;
  once = std::make_unique<std::once_flag>();
  memoir::predecessor = [leave] { std::call_once(*once, leave); };
}

template <class T, int kRows>
void stream(const LinearCall& call) {
  memoir::run_clusters(clusters_of(call), call.splits, memoir::kLinearThreads, sizeof(memoir::Stream<T, kRows>),
                       [&] { memoir::stream_rows<T, kRows>(call); });
}

// The route arrives late: nothing may be read before the wait.
template <class T>
void stream(LinearCall call, int rows) {
  std::vector<int32_t> late(call.batch * call.route_step + 1, 0x7fffffff);
  const int32_t* route = call.route;
  set_predecessor([&late, &call, route] {
    for (int b = 0; b < call.batch; ++b) late[b * call.route_step] = route[b * call.route_step];
  });
  call.route = late.data();
  switch (rows) {
    case 1:
      return stream<T, 1>(call);
    case 2:
      return stream<T, 2>(call);
    case 4:
      return stream<T, 4>(call);
    default:
      return stream<T, 8>(call);
  }
}

// Packs into memory of its own, which shows to the tiles after their wait.
template <class T, int kRows>
void tiles(LinearCall call) {
  const int64_t rows = static_cast<int64_t>(call.batch) * call.tokens;
  const int parts = static_cast<int>((call.packed_row + memoir::kPackedByBlock - 1) / memoir::kPackedByBlock);
  const std::vector<uint16_t> unwritten(rows * call.packed_row + 8, 0xffff);  // NaN
  std::vector<uint16_t> packed = unwritten, late = unwritten;
  const auto aligned = [](std::vector<uint16_t>& values) {
    return values.data() + (16 - reinterpret_cast<uintptr_t>(values.data()) % 16) % 16 / 2;
  };
  call.packed = aligned(packed);
  set_predecessor([] {});
  memoir::run_clusters(static_cast<int>(rows) * parts, 1, memoir::kLinearThreads, sizeof(memoir::Pack),
                       [&] { memoir::pack_inputs(call, parts); });
  set_predecessor([&, from = static_cast<const uint16_t*>(call.packed), to = aligned(late)] {
    std::copy(from, from + rows * call.packed_row, to);
  });
  call.packed = aligned(late);
  const size_t list = memoir::round_up((std::max(call.width, call.k) + call.splits - 1) / call.splits, memoir::kDepth);
  memoir::run_clusters(clusters_of(call), call.splits, memoir::kLinearThreads,
                       sizeof(memoir::Tile<T, kRows>) + list * sizeof(int),
                       [&] { memoir::multiply_tiles<T, kRows>(call); });
}

template <class T>
void tiles(const LinearCall& call) {
  switch (call.tile_rows) {
    case 16:
      return tiles<T, 16>(call);
    case 32:
      return tiles<T, 32>(call);
    default:
      return tiles<T, 64>(call);
  }
}

}  // namespace

// kind: 0 float32, 1 float16, 2 bfloat16. rows: of the streaming kernel, 1, 2, 4 or 8; or, negative, of a tile.
extern "C" void run_linear(int kind, int rows, int splits, int add, void* out, const void* x, const void* memory,
                           const int32_t* columns, const int32_t* route, const int64_t* strides, const int* sizes) {
  LinearCall call{};
  call.x = x, call.memory = memory, call.columns = columns, call.route = route, call.out = out;
  call.x_batch = strides[0], call.x_token = strides[1], call.x_input = strides[2];
  call.memory_row = strides[3] * (kind == 0 ? 4 : 2) / 16;
  call.columns_row = strides[4], call.columns_step = strides[5], call.route_step = strides[6];
  call.out_batch = strides[7], call.out_token = strides[8], call.out_output = strides[9];
  call.batch = sizes[0], call.tokens = sizes[1], call.width = sizes[2], call.outputs = sizes[3];
  call.k = sizes[4], call.edits = sizes[5], call.rows = sizes[6];
  call.splits = splits, call.add = add;
  call.tile_rows = rows < 0 ? -rows : 0;
  const bool may_be_dense = call.batch > 1 && call.rows == call.width && static_cast<int64_t>(call.batch) * call.k >= call.width;
  call.packed_row = memoir::round_up(may_be_dense ? call.width : call.k, memoir::kDepth);
  if (rows < 0) return kind == 1 ? tiles<memoir::Half>(call) : tiles<memoir::BFloat16>(call);
  if (kind == 0) return stream<float>(call, rows);
  return kind == 1 ? stream<memoir::Half>(call, rows) : stream<memoir::BFloat16>(call, rows);
}
