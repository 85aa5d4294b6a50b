// The hash and the search on a GPU as torch ops. Nothing here waits for the device, and nothing that is allocated depends on
// values there: a call can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_host.h"
#include "registry.h"

namespace memoir {
namespace {

constexpr int64_t kPieceWords = 4;  // 16 bytes
constexpr int64_t kLargestGrid = std::numeric_limits<int32_t>::max();

int64_t row_stride(const Tensor& masks) { return masks.size(0) > 1 ? masks.stride(0) : masks.size(1); }

// The tensor itself where its rows are dense and start on 16-byte boundaries, else a copy whose rows do.
Tensor with_aligned_rows(const Tensor& masks) {
  const Tensor dense = with_dense_rows(masks);
  const bool aligned = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 && row_stride(dense) % kPieceWords == 0;
  return aligned ? dense : torch::stable::clone(torch::stable::contiguous(dense));
}

Scan scan_of(const Tensor& query, const Tensor& store, Kernel kernel) {
  Scan scan{};
  scan.query = static_cast<const uint4*>(query.const_data_ptr());
  scan.store = static_cast<const uint4*>(store.const_data_ptr());
  scan.query_stride = row_stride(query) / kPieceWords;
  scan.store_stride = row_stride(store) / kPieceWords;
  scan.queries = static_cast<int>(query.size(0));
  scan.rows = static_cast<int>(store.size(0));
  scan.pieces = static_cast<int>(query.size(1) / kPieceWords);
  const int per_tile = queries_per_tile(kernel);
  scan.query_tiles = static_cast<int>((query.size(0) + per_tile - 1) / per_tile);
  const int64_t most_blocks = store.size(0) / 8 + 1;
  require(scan.query_tiles <= kLargestGrid / most_blocks, "too many pairs of masks for one launch: ", query.size(0),
          " queries, ", store.size(0), " rows");
  return scan;
}

Tensor mask_overlap(const Tensor& query_in, const Tensor& store_in) {
  require_masks(query_in, store_in);
  const int64_t queries = query_in.size(0), rows = store_in.size(0);
  require(queries <= kLargestGrid, "too many queries: ", queries);
  const int32_t device = query_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor overlap = torch::stable::new_empty(query_in, {queries, rows});
  if (queries == 0 || rows == 0) return overlap;
  const Tensor query = with_aligned_rows(query_in), store = with_aligned_rows(store_in);
  const Gpu gpu = gpu_of(device);
  const Kernel kernel = choose_kernel(queries, gpu);
  Scan scan = scan_of(query, store, kernel);
  scan.overlap = static_cast<int32_t*>(overlap.mutable_data_ptr());
  check(launch_mask_overlap(scan, kernel, gpu, current_stream(device)));
  return overlap;
}

std::tuple<Tensor, Tensor> mask_match(const Tensor& query_in, const Tensor& store_in, const Tensor& count,
                                      const Tensor& min_overlap) {
  require_match(query_in, store_in, count, min_overlap);
  const int64_t queries = query_in.size(0);
  require(queries <= kLargestGrid, "too many queries: ", queries);
  const int32_t device = query_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor edit = torch::stable::new_empty(query_in, {queries});
  const Tensor overlap = torch::stable::new_empty(query_in, {queries});
  if (queries == 0) return {edit, overlap};
  const Tensor query = with_aligned_rows(query_in), store = with_aligned_rows(store_in);
  const Gpu gpu = gpu_of(device);
  const Kernel kernel = choose_kernel(queries, gpu);
  Scan scan = scan_of(query, store, kernel);

  const Tensor scratch = torch::stable::new_empty(query, {scan.scratch_words()}, ScalarType::Long);
  scan.best = static_cast<unsigned long long*>(scratch.mutable_data_ptr());
  scan.finished = reinterpret_cast<unsigned int*>(scan.best + queries);
  scan.count = static_cast<const int32_t*>(count.const_data_ptr());
  scan.edit = static_cast<int32_t*>(edit.mutable_data_ptr());
  scan.overlap = static_cast<int32_t*>(overlap.mutable_data_ptr());
  scan.min_overlap = static_cast<const int32_t*>(min_overlap.const_data_ptr());
  scan.min_overlap_stride = min_overlap.stride(0);
  check(launch_mask_match(scan, kernel, gpu, current_stream(device)));
  return {edit, overlap};
}

constexpr int64_t kFewRows = 8;  // a search after so few rows begins to fetch its store while they are hashed

bool on_piece(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

std::tuple<Tensor, Tensor> tophash(const Tensor& feature_in, int64_t k, const Tensor& permutation_in) {
  require_tensor("feature", feature_in, ScalarType::Float, "B, D", {-1, -1});
  const int64_t batch = feature_in.size(0), width = feature_in.size(1);
  require(1 <= width && width <= kWidestHash, "D must lie in [1, ", kWidestHash, "], got ", width);
  require(1 <= k && k <= width, "k must lie in [1, D = ", width, "], got ", k);
  require_tensor("permutation", permutation_in, ScalarType::Int, "D", {width});
  require_device("permutation", permutation_in, feature_in);
  require(batch <= kLargestGrid, "too many rows: ", batch);
  const int32_t device = feature_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t words = (width + 127) / 128 * 4;
  const Tensor mask = torch::stable::new_empty(feature_in, {batch, words}, ScalarType::Int);
  const Tensor columns = torch::stable::new_empty(feature_in, {batch, k}, ScalarType::Int);
  if (batch == 0) return {mask, columns};
  const Tensor feature = with_dense_rows(feature_in), permutation = with_dense_rows(permutation_in);

  HashCall call{};
  call.feature = static_cast<const float*>(feature.const_data_ptr());
  call.permutation = static_cast<const int32_t*>(permutation.const_data_ptr());
  call.mask = static_cast<int32_t*>(mask.mutable_data_ptr());
  call.columns = static_cast<int32_t*>(columns.mutable_data_ptr());
  call.feature_row = batch > 1 ? feature.stride(0) : width;
  call.rows = static_cast<int>(batch), call.width = static_cast<int>(width), call.k = static_cast<int>(k);
  call.words = static_cast<int>(words), call.reach = reach_of(k, width);
  call.pieces = on_piece(call.feature) && on_piece(call.permutation) && (batch == 1 || call.feature_row % 4 == 0);
  const Gpu gpu = gpu_of(device);
  call.admit = gpu.dependent_launch && batch <= kFewRows;
  check(launch_tophash(call, gpu, current_stream(device)));
  return {mask, columns};
}

FeatureType type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return FeatureType::float32;
    case ScalarType::Half:
      return FeatureType::float16;
    case ScalarType::BFloat16:
      return FeatureType::bfloat16;
    default:
      fail("x must be float16, bfloat16 or float32 on a GPU, got ", name_of(x.scalar_type()));
  }
}

Tensor prompt_feature(const Tensor& x, const Tensor& prompt_mask, const Tensor& mu) {
  require(x.dim() == 3, "x must be [B, S, D], got ", shape_of(x));
  const FeatureType type = type_of(x);
  const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
  require_tensor("prompt_mask", prompt_mask, ScalarType::Bool, "B, S", {batch, tokens});
  require_tensor("mu", mu, ScalarType::Float, "D", {width});
  require_device("prompt_mask", prompt_mask, x);
  require_device("mu", mu, x);
  const int64_t size = type == FeatureType::float32 ? 4 : 2;
  require(x.stride(2) == 1 || width == 1, "a token's inputs must lie side by side");
  require(on_piece(x.const_data_ptr()) && x.stride(0) * size % 16 == 0 && x.stride(1) * size % 16 == 0,
          "x must begin on a 16-byte boundary, as must each of its tokens");
  require(tokens <= kLargestGrid / 2 && batch * ((width + 31) / 32) <= kLargestGrid, "x is too large: ", shape_of(x));
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor feature = torch::stable::new_empty(x, {batch, width}, ScalarType::Float);
  if (batch == 0 || width == 0) return feature;

  FeatureCall call{};
  call.x = x.const_data_ptr();
  call.marked = static_cast<const bool*>(prompt_mask.const_data_ptr());
  call.mu = static_cast<const float*>(mu.const_data_ptr());
  call.feature = static_cast<float*>(feature.mutable_data_ptr());
  call.x_batch = x.stride(0), call.x_token = x.stride(1);
  call.marked_batch = prompt_mask.stride(0), call.marked_token = prompt_mask.stride(1), call.mu_step = mu.stride(0);
  call.batch = static_cast<int>(batch), call.tokens = static_cast<int>(tokens), call.width = static_cast<int>(width);
  check(launch_prompt_feature(call, type, gpu_of(device), current_stream(device)));
  return feature;
}

Tensor mask_columns(const Tensor& mask_in, int64_t k) {
  require_tensor("mask", mask_in, ScalarType::Int, "B, W", {-1, -1});
  const int64_t batch = mask_in.size(0), words = mask_in.size(1);
  require(k >= 1 && k <= words * 32, "k must lie in [1, 32 W = ", words * 32, "], got ", k);
  require(batch <= kLargestGrid && words <= kLargestGrid / 32, "mask is too large: ", shape_of(mask_in));
  const int32_t device = mask_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor columns = torch::stable::new_empty(mask_in, {batch, k});
  if (batch == 0) return columns;
  const Tensor mask = with_dense_rows(mask_in);
  ColumnsCall call{};
  call.mask = static_cast<const int32_t*>(mask.const_data_ptr());
  call.columns = static_cast<int32_t*>(columns.mutable_data_ptr());
  call.mask_row = batch > 1 ? mask.stride(0) : words;
  call.rows = static_cast<int>(batch), call.words = static_cast<int>(words), call.k = static_cast<int>(k);
  check(launch_mask_columns(call, gpu_of(device), current_stream(device)));
  return columns;
}

std::tuple<Tensor, Tensor> route_rows(const Tensor& mask_in, const Tensor& page_in, const Tensor& route_in, int64_t k,
                                      int64_t width) {
  require_routes(mask_in, page_in, route_in, k, width);
  const int64_t batch = route_in.size(0), words = mask_in.size(1);
  require(batch <= kLargestGrid, "too many routes: ", batch);
  const int32_t device = mask_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor rows = torch::stable::new_empty(mask_in, {batch, k});
  const Tensor first = torch::stable::new_empty(mask_in, {batch});
  if (batch == 0) return {rows, first};
  const Tensor mask = with_dense_rows(mask_in), page = torch::stable::contiguous(page_in),
               route = torch::stable::contiguous(route_in);
  ColumnsCall call{};
  call.mask = static_cast<const int32_t*>(mask.const_data_ptr());
  call.page = static_cast<const int32_t*>(page.const_data_ptr());
  call.route = static_cast<const int32_t*>(route.const_data_ptr());
  call.columns = static_cast<int32_t*>(rows.mutable_data_ptr());
  call.first = static_cast<int32_t*>(first.mutable_data_ptr());
  call.mask_row = row_stride(mask);
  call.rows = static_cast<int>(batch), call.words = static_cast<int>(words), call.k = static_cast<int>(k);
  call.masks = static_cast<int>(mask.size(0)), call.width = static_cast<int>(width);
  check(launch_mask_columns(call, gpu_of(device), current_stream(device)));
  return {rows, first};
}

std::tuple<Tensor, Tensor> code_route(const Tensor& row_in, const Tensor& overlap_in, const Tensor& owner_in,
                                      const Tensor& room_in) {
  require_codes(row_in, overlap_in, owner_in, room_in);
  const int64_t prompts = row_in.size(0);
  const int32_t device = row_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor route = torch::stable::new_empty(row_in, {prompts}), best = torch::stable::new_empty(row_in, {prompts});
  if (prompts == 0) return {route, best};
  const Tensor row = torch::stable::contiguous(row_in), overlap = torch::stable::contiguous(overlap_in),
               owner = torch::stable::contiguous(owner_in), room = torch::stable::contiguous(room_in);
  CodesCall call{};
  call.row = static_cast<const int32_t*>(row.const_data_ptr());
  call.overlap = static_cast<const int32_t*>(overlap.const_data_ptr());
  call.owner = static_cast<const int32_t*>(owner.const_data_ptr());
  call.room = static_cast<const int32_t*>(room.const_data_ptr());
  call.route = static_cast<int32_t*>(route.mutable_data_ptr());
  call.best = static_cast<int32_t*>(best.mutable_data_ptr());
  call.prompts = static_cast<int>(prompts), call.codes = static_cast<int>(row.size(1));
  call.stored = static_cast<int>(owner.size(0));
  check(launch_decision(call, gpu_of(device), current_stream(device)));
  return {route, best};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(memoir_fast_native, CUDA, m) {
  MEMOIR_IMPLEMENTS(m, "cuda", mask_overlap);
  MEMOIR_IMPLEMENTS(m, "cuda", mask_match);
  MEMOIR_IMPLEMENTS(m, "cuda", tophash);
  MEMOIR_IMPLEMENTS(m, "cuda", prompt_feature);
  MEMOIR_IMPLEMENTS(m, "cuda", mask_columns);
  MEMOIR_IMPLEMENTS(m, "cuda", route_rows);
  MEMOIR_IMPLEMENTS(m, "cuda", code_route);
}

}  // namespace memoir
