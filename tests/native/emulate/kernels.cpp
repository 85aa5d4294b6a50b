// Runs the GPU kernels of csrc/overlap_kernels.cuh on the CPU, for the test beside it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "overlap_kernels.cuh"

namespace {

using memoir::Scan;

template <int kQueries>
void popc(const Scan& scan, bool match, int blocks, int threads) {
  const auto backwards = [=](int i) { return blocks * scan.query_tiles - 1 - i; };
  memoir::run_grid(blocks * scan.query_tiles, threads, backwards, [&] {
    match ? memoir::popc_scan<kQueries, true>(scan) : memoir::popc_scan<kQueries, false>(scan);
  });
}

template <class T>
void mma(const Scan& scan, bool match) {
  const int blocks = std::max(1, (scan.rows + T::kRows - 1) / T::kRows);
  const auto backwards = [=](int i) { return blocks * scan.query_tiles - 1 - i; };
  memoir::run_grid(blocks * scan.query_tiles, T::kThreads, backwards, [&] {
    match ? memoir::mma_scan<T, true>(scan) : memoir::mma_scan<T, false>(scan);
  });
}

}  // namespace

// kernel: queries of a POPC tile, 1, 2, 4 or 8; or -1 for the small and -2 for the large matrix tiling.
// count: a pointer selects mask_match, nullptr mask_overlap. Masks have `words` int32 per row, without gaps.
extern "C" void run_scan(int kernel, int blocks, int threads, const int32_t* query, int queries, const int32_t* store,
                         int rows, int words, const int32_t* count, int64_t min_overlap, int32_t* edit,
                         int32_t* overlap) {
  const int per_tile =
      kernel > 0 ? kernel : kernel == -1 ? memoir::SmallTiling::kQueries : memoir::LargeTiling::kQueries;
  std::vector<unsigned long long> best(queries, 0);
  std::vector<unsigned int> finished(queries, 0);
  // Copies of exactly the size, so that a sanitizer sees a read past the end.
  std::vector<uint4> queries_copy(static_cast<size_t>(queries) * words / 4);
  std::vector<uint4> store_copy(static_cast<size_t>(rows) * words / 4);
  std::memcpy(static_cast<void*>(queries_copy.data()), query, queries_copy.size() * sizeof(uint4));
  if (rows != 0) std::memcpy(static_cast<void*>(store_copy.data()), store, store_copy.size() * sizeof(uint4));

  Scan scan{};
  scan.query = queries_copy.data();
  scan.store = store_copy.data();
  scan.query_stride = scan.store_stride = scan.pieces = words / 4;
  scan.queries = queries;
  scan.rows = rows;
  scan.query_tiles = (queries + per_tile - 1) / per_tile;
  scan.overlap = overlap;
  scan.count = count;
  scan.edit = edit;
  scan.min_overlap = min_overlap;
  scan.best = best.data();
  scan.finished = finished.data();
  const bool match = count != nullptr;
  switch (kernel) {
    case 1:
      return popc<1>(scan, match, blocks, threads);
    case 2:
      return popc<2>(scan, match, blocks, threads);
    case 4:
      return popc<4>(scan, match, blocks, threads);
    case 8:
      return popc<8>(scan, match, blocks, threads);
    case -1:
      return mma<memoir::SmallTiling>(scan, match);
    default:
      return mma<memoir::LargeTiling>(scan, match);
  }
}
