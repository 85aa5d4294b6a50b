// mask_overlap and mask_match on a GPU as torch ops. Nothing here waits for the device, and nothing that is allocated
// depends on values there: a call can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_host.h"

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(memoir_fast_native, CUDA, m) {
  m.impl("mask_overlap", TORCH_BOX(&mask_overlap));
  m.impl("mask_match", TORCH_BOX(&mask_match));
}

}  // namespace memoir
