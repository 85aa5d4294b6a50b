// The CPU kernels as torch ops, spread over torch's own threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <tuple>
#include <vector>

#include "checks.h"
#include "masked_linear_cpu.h"
#include "overlap_cpu.h"
#include "hash_cpu.h"
#include "parallel.h"
#include "registry.h"

namespace memoir {
namespace {

constexpr int64_t kGrainBytes = 1 << 18;  // less work than this is not worth another thread
constexpr int64_t kLargestWidth = 65536;  // of a hashed row, on every backend

template <class F>
void parallel(int64_t units, int64_t bytes_per_unit, const F& work) {
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_unit));
  spread(units, grain, work);
}

Masks masks_of(const Tensor& tensor) {
  return {static_cast<const int32_t*>(tensor.const_data_ptr()), tensor.size(0), tensor.stride(0), tensor.size(1)};
}

Tensor mask_overlap(const Tensor& query_in, const Tensor& store_in) {
  require_masks(query_in, store_in);
  const Tensor query = with_dense_rows(query_in), store = with_dense_rows(store_in);
  const Tensor overlap = torch::stable::new_empty(query, {query.size(0), store.size(0)});
  const Masks queries = masks_of(query), rows = masks_of(store);
  auto* out = static_cast<int32_t*>(overlap.mutable_data_ptr());
  parallel(rows.rows, rows.words * 4 * std::max<int64_t>(1, queries.rows),
           [&](int64_t begin, int64_t end) { mask_overlap_rows(queries, rows, begin, end, out); });
  return overlap;
}

std::tuple<Tensor, Tensor> mask_match(const Tensor& query_in, const Tensor& store_in, const Tensor& count,
                                      const Tensor& min_overlap) {
  require_match(query_in, store_in, count, min_overlap);
  const int64_t used = *static_cast<const int32_t*>(count.const_data_ptr());
  require(0 <= used && used <= store_in.size(0), "count must lie in [0, ", store_in.size(0), "], got ", used);

  const Tensor query = with_dense_rows(query_in), store = with_dense_rows(store_in);
  const Masks queries = masks_of(query), rows = masks_of(store).slice(0, used);
  const Thresholds least = {static_cast<const int32_t*>(min_overlap.const_data_ptr()), min_overlap.stride(0)};
  std::vector<uint64_t> best(queries.rows, 0);
  std::mutex merging;
  parallel(used, rows.words * 4 * queries.rows, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> own(queries.rows, 0);
    mask_match_rows(queries, rows, least, begin, end, own.data());
    const std::lock_guard<std::mutex> lock(merging);
    for (size_t q = 0; q < own.size(); ++q) best[q] = std::max(best[q], own[q]);
  });

  const Tensor edit = torch::stable::new_empty(query, {queries.rows});
  const Tensor overlap = torch::stable::new_empty(query, {queries.rows});
  auto* edits = static_cast<int32_t*>(edit.mutable_data_ptr());
  auto* overlaps = static_cast<int32_t*>(overlap.mutable_data_ptr());
  for (int64_t q = 0; q < queries.rows; ++q) {
    overlaps[q] = overlap_of(best[q]);
    edits[q] = edit_of(best[q]);
  }
  return {edit, overlap};
}

std::tuple<Tensor, Tensor> tophash(const Tensor& feature_in, int64_t k, const Tensor& permutation_in) {
  require_tensor("feature", feature_in, ScalarType::Float, "B, D", {-1, -1});
  const int64_t batch = feature_in.size(0), width = feature_in.size(1);
  require(1 <= width && width <= kLargestWidth, "D must lie in [1, ", kLargestWidth, "], got ", width);
  require(1 <= k && k <= width, "k must lie in [1, D = ", width, "], got ", k);
  require_tensor("permutation", permutation_in, ScalarType::Int, "D", {width});
  require_device("permutation", permutation_in, feature_in);

  const Tensor feature = with_dense_rows(feature_in), permutation = with_dense_rows(permutation_in);
  const auto* order = static_cast<const int32_t*>(permutation.const_data_ptr());
  uint32_t largest = 0;  // as unsigned numbers, so that one below 0 is out of range too
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, static_cast<uint32_t>(order[i]));
  require(largest < static_cast<uint64_t>(width), "permutation must lie in [0, D = ", width, ")");

  const int64_t words = (width + 127) / 128 * 4;
  const Tensor mask = torch::stable::new_empty(feature, {batch, words}, ScalarType::Int);
  const Tensor columns = torch::stable::new_empty(feature, {batch, k}, ScalarType::Int);
  const auto* rows = static_cast<const float*>(feature.const_data_ptr());
  auto* masks = static_cast<int32_t*>(mask.mutable_data_ptr());
  auto* chosen = static_cast<int32_t*>(columns.mutable_data_ptr());
  const int64_t stride = feature.stride(0);
  std::atomic<bool> repeats{false};
  parallel(batch, width * 64, [&](int64_t begin, int64_t end) {
    TopHashScratch scratch;
    for (int64_t row = begin; row < end; ++row) {
      if (!tophash_row(rows + row * stride, width, k, order, words, masks + row * words, chosen + row * k, scratch)) {
        repeats = true;
      }
    }
  });
  require(!repeats, "permutation must be a permutation of 0 .. ", width - 1, ", some numbers repeat");
  return {mask, columns};
}

// The numbers of the first k bits that are set, each with `base` added; base - 1 where there are fewer.
void list_bits(const uint32_t* word, int64_t words, int64_t k, int32_t base, int32_t* next) {
  int32_t* const end = next + k;
  for (int64_t w = 0; w < words && next < end; ++w) {
    for (uint32_t left = word[w]; left != 0 && next < end; left &= left - 1) {
      *next++ = base + static_cast<int32_t>(w * 32 + __builtin_ctz(left));
    }
  }
  std::fill(next, end, base - 1);
}

Tensor mask_columns(const Tensor& mask_in, int64_t k) {
  require_tensor("mask", mask_in, ScalarType::Int, "B, W", {-1, -1});
  const int64_t batch = mask_in.size(0), words = mask_in.size(1);
  require(k >= 1 && k <= words * 32, "k must lie in [1, 32 W = ", words * 32, "], got ", k);
  require(words <= std::numeric_limits<int32_t>::max() / 32, "W is too large: ", words);
  const Tensor mask = with_dense_rows(mask_in);
  const Tensor columns = torch::stable::new_empty(mask, {batch, k});
  const auto* masks = static_cast<const uint32_t*>(mask.const_data_ptr());
  auto* listed = static_cast<int32_t*>(columns.mutable_data_ptr());
  for (int64_t row = 0; row < batch; ++row) list_bits(masks + row * mask.stride(0), words, k, 0, listed + row * k);
  return columns;
}

std::tuple<Tensor, Tensor> route_rows(const Tensor& mask_in, const Tensor& page_in, const Tensor& route_in, int64_t k,
                                      int64_t width) {
  require_routes(mask_in, page_in, route_in, k, width);
  const Tensor mask = with_dense_rows(mask_in), page = torch::stable::contiguous(page_in),
               route = torch::stable::contiguous(route_in);
  const int64_t batch = route.size(0), words = mask.size(1);
  const auto* edits = static_cast<const int32_t*>(route.const_data_ptr());
  for (int64_t row = 0; row < batch; ++row) {
    require(-1 <= edits[row] && edits[row] < mask.size(0), "route must lie in [-1, ", mask.size(0), "), got ", edits[row]);
  }
  const Tensor rows = torch::stable::new_empty(mask, {batch, k}), first = torch::stable::new_empty(mask, {batch});
  const auto* masks = static_cast<const uint32_t*>(mask.const_data_ptr());
  const auto* pages = static_cast<const int32_t*>(page.const_data_ptr());
  auto* listed = static_cast<int32_t*>(rows.mutable_data_ptr());
  auto* alike = static_cast<int32_t*>(first.mutable_data_ptr());
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t edit = std::max(edits[row], 0);
    const auto base = static_cast<int32_t>(static_cast<uint32_t>(pages[edit]) * static_cast<uint32_t>(width));
    list_bits(masks + edit * mask.stride(0), words, k, base, listed + row * k);
    alike[row] = edits[row] < 0 ? -1 : static_cast<int32_t>(std::find(edits, edits + row, edits[row]) - edits);
  }
  return {rows, first};
}

std::tuple<Tensor, Tensor> code_route(const Tensor& row_in, const Tensor& overlap_in, const Tensor& owner_in,
                                      const Tensor& room_in) {
  require_codes(row_in, overlap_in, owner_in, room_in);
  const Tensor row = torch::stable::contiguous(row_in), overlap = torch::stable::contiguous(overlap_in);
  const int64_t prompts = row.size(0), codes = row.size(1), stored = owner_in.size(0);
  const int64_t owner_step = owner_in.stride(0), room_step = room_in.stride(0);
  const Tensor route = torch::stable::new_empty(row, {prompts}), best = torch::stable::new_empty(row, {prompts});
  const auto* rows = static_cast<const int32_t*>(row.const_data_ptr());
  const auto* overlaps = static_cast<const int32_t*>(overlap.const_data_ptr());
  const auto* owners = static_cast<const int32_t*>(owner_in.const_data_ptr());
  const auto* rooms = static_cast<const int32_t*>(room_in.const_data_ptr());
  auto* routes = static_cast<int32_t*>(route.mutable_data_ptr());
  auto* bits = static_cast<int32_t*>(best.mutable_data_ptr());
  for (int64_t i = 0; i < prompts * codes; ++i) {
    require(-1 <= rows[i] && rows[i] < stored, "row must lie in [-1, ", stored, "), got ", rows[i]);
  }
  for (int64_t prompt = 0; prompt < prompts; ++prompt, rows += codes, overlaps += codes) {
    int64_t chosen = 0;
    for (int64_t q = 1; q < codes; ++q) {
      const bool alike = (rows[q] >= 0) == (rows[chosen] >= 0);
      if (alike ? overlaps[q] > overlaps[chosen] : rows[q] >= 0) chosen = q;
    }
    const int32_t at = rows[chosen];
    routes[prompt] = at >= 0 && rooms[at * room_step] > 0 ? owners[at * owner_step] : -1;
    bits[prompt] = overlaps[chosen];
  }
  return {route, best};
}

template <class T>
void feature_rows(const Tensor& x, const Tensor& prompt_mask, const Tensor& mu, const Tensor& feature) {
  const auto* values = static_cast<const T*>(x.const_data_ptr());
  const auto* marked = static_cast<const bool*>(prompt_mask.const_data_ptr());
  const auto* centre = static_cast<const float*>(mu.const_data_ptr());
  auto* out = static_cast<float*>(feature.mutable_data_ptr());
  const int64_t tokens = x.size(1), width = x.size(2), chunks = (width + kFeatureChunk - 1) / kFeatureChunk;
  const int64_t batch_stride = x.stride(0), stride = x.stride(1);
  const int64_t mark_batch = prompt_mask.stride(0), mark_stride = prompt_mask.stride(1);
  parallel(x.size(0) * chunks, tokens * kFeatureChunk * static_cast<int64_t>(sizeof(T)),
           [&](int64_t begin, int64_t end) {
             for (int64_t unit = begin; unit < end; ++unit) {
               const int64_t row = unit / chunks, column = unit % chunks * kFeatureChunk;
               prompt_feature_chunk(values + row * batch_stride + column, stride, marked + row * mark_batch,
                                    mark_stride, tokens, centre + column, std::min(kFeatureChunk, width - column),
                                    out + row * width + column);
             }
           });
}

Tensor prompt_feature(const Tensor& x_in, const Tensor& prompt_mask, const Tensor& mu_in) {
  require(x_in.dim() == 3, "x must be [B, S, D], got ", shape_of(x_in));
  require_float("x", x_in);
  require_tensor("prompt_mask", prompt_mask, ScalarType::Bool, "B, S", {x_in.size(0), x_in.size(1)});
  require_tensor("mu", mu_in, ScalarType::Float, "D", {x_in.size(2)});
  require_device("prompt_mask", prompt_mask, x_in);
  require_device("mu", mu_in, x_in);
  const Tensor x = with_dense_rows(x_in), mu = with_dense_rows(mu_in);
  const Tensor feature = torch::stable::new_empty(x, {x.size(0), x.size(2)}, ScalarType::Float);
  switch (x.scalar_type()) {
    case ScalarType::Double:
      feature_rows<double>(x, prompt_mask, mu, feature);
      break;
    case ScalarType::Float:
      feature_rows<float>(x, prompt_mask, mu, feature);
      break;
    case ScalarType::Half:
      feature_rows<Half>(x, prompt_mask, mu, feature);
      break;
    default:
      feature_rows<BFloat16>(x, prompt_mask, mu, feature);
  }
  return feature;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(memoir_fast_native, CPU, m) {
  MEMOIR_IMPLEMENTS(m, "cpu", mask_overlap);
  MEMOIR_IMPLEMENTS(m, "cpu", mask_match);
  MEMOIR_IMPLEMENTS(m, "cpu", tophash);
  MEMOIR_IMPLEMENTS(m, "cpu", mask_columns);
  MEMOIR_IMPLEMENTS(m, "cpu", route_rows);
  MEMOIR_IMPLEMENTS(m, "cpu", code_route);
  MEMOIR_IMPLEMENTS(m, "cpu", prompt_feature);
}

}  // namespace memoir
