// Runs the GPU kernels that hash, list columns and decide on routes on the CPU, for the test beside it.
#include "code_route_kernel.cuh"
#include "mask_columns_kernel.cuh"
#include "prompt_feature_kernel.cuh"
#include "tophash_kernel.cuh"

namespace {

int backwards_from(int blocks, int i) { return blocks - 1 - i; }

template <int kThreads, int kVectors>
void hash(const memoir::HashCall& call) {
  memoir::run_grid(call.rows, kThreads, [&](int i) { return backwards_from(call.rows, i); },
                   [&] { memoir::hash_row<kThreads, kVectors>(call); });
}

template <class T, int kPieces>
void feature(const memoir::FeatureCall& call) {
  constexpr int kColumns = memoir::FeatureShared<T, kPieces>::kColumns;
  const int tiles = (call.width + kColumns - 1) / kColumns, blocks = call.batch * tiles;
  memoir::run_grid(blocks, memoir::kFeatureThreads, [&](int i) { return backwards_from(blocks, i); },
                   [&] { memoir::feature_columns<T, kPieces>(call, tiles); });
}

template <class T>
void feature(const memoir::FeatureCall& call, int pieces) {
  if (pieces == 8) return feature<T, 8>(call);
  return pieces == 32 ? feature<T, 32>(call) : feature<T, 128>(call);
}

}  // namespace

// form: which instantiation. Rows have `feature_row` floats from one to the next.
extern "C" void run_tophash(int form, const float* values, const int32_t* permutation, int32_t* mask, int32_t* columns,
                            int rows, int width, int k, int words, int feature_row, int pieces, int reach) {
  memoir::predecessor = [] {};
  memoir::HashCall call{};
  call.feature = values, call.permutation = permutation, call.mask = mask, call.columns = columns;
  call.feature_row = feature_row, call.rows = rows, call.width = width, call.k = k, call.words = words;
  call.reach = reach, call.pieces = pieces != 0;
  switch (form) {
    case 0:
      return hash<64, 2>(call);
    case 1:
      return hash<64, 7>(call);
    case 2:
      return hash<256, 2>(call);
    case 3:
      return hash<512, 4>(call);
    case 4:
      return hash<512, 7>(call);
    default:
      return hash<512, 8>(call);
  }
}

extern "C" void run_feature(int dtype, int pieces, const void* x, const bool* marked, const float* mu, float* out,
                            int batch, int tokens, int width, int token_stride, int marked_stride) {
  memoir::predecessor = [] {};
  memoir::FeatureCall call{};
  call.x = x, call.marked = marked, call.mu = mu, call.feature = out;
  call.x_token = token_stride, call.x_batch = int64_t{tokens} * token_stride;
  call.marked_token = marked_stride, call.marked_batch = int64_t{tokens} * marked_stride, call.mu_step = 1;
  call.batch = batch, call.tokens = tokens, call.width = width;
  if (dtype == 0) return feature<float>(call, pieces);
  return dtype == 1 ? feature<memoir::Half>(call, pieces) : feature<memoir::BFloat16>(call, pieces);
}

extern "C" void run_columns(const int32_t* mask, int32_t* columns, int rows, int words, int k) {
  memoir::predecessor = [] {};
  const memoir::ColumnsCall call{mask, columns, words, rows, words, k, nullptr, nullptr, nullptr, 0, 0};
  memoir::run_grid(rows, memoir::kColumnsThreads, [&](int i) { return backwards_from(rows, i); },
                   [&] { memoir::list_columns(call); });
}

extern "C" void run_rows(const int32_t* mask, const int32_t* page, const int32_t* route, int32_t* rows, int32_t* first,
                         int masks, int batch, int words, int mask_row, int k, int width) {
  memoir::predecessor = [] {};
  const memoir::ColumnsCall call{mask, rows, mask_row, batch, words, k, route, page, first, masks, width};
  memoir::run_grid(batch, memoir::kColumnsThreads, [&](int i) { return backwards_from(batch, i); },
                   [&] { memoir::list_columns(call); });
}

extern "C" void run_decision(const int32_t* row, const int32_t* overlap, const int32_t* owner, const int32_t* room,
                             int32_t* route, int32_t* best, int prompts, int codes, int stored) {
  memoir::predecessor = [] {};
  const memoir::CodesCall call{row, overlap, owner, room, route, best, prompts, codes, stored};
  const int blocks = (prompts + memoir::kDecideThreads - 1) / memoir::kDecideThreads;
  memoir::run_grid(blocks, memoir::kDecideThreads, [&](int i) { return backwards_from(blocks, i); },
                   [&] { memoir::decide(call); });
}
