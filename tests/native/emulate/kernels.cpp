// Runs the GPU kernels of csrc/overlap_kernels.cuh on the CPU, for the test beside it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "clear_scratch.cuh"
#include "overlap_kernels.cuh"

namespace {

using memoir::Scan;

// Memory that an earlier kernel still writes: garbage until the wait of each block, then `values`.
template <class T>
class Late {
 public:
  Late(const T* values, size_t size) : values_(values, values + size), memory_(size) {}
  T* memory() { return memory_.data(); }
  void spoil() {
    for (T& value : memory_) std::memset(static_cast<void*>(&value), 0xa5, sizeof value);
  }
  void arrive() { std::copy(values_.begin(), values_.end(), memory_.begin()); }

 private:
  std::vector<T> values_, memory_;  // of exactly the size, so that a sanitizer sees a read past the end
};

template <int kQueries>
void popc(const Scan& scan, bool match, int blocks, int threads, const std::function<void()>& spoil) {
  const auto backwards = [=](int i) {
    spoil();
    return blocks * scan.query_tiles - 1 - i;
  };
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
                         int rows, int words, const int32_t* count, const int32_t* min_overlap,
                         int32_t* edit, int32_t* overlap) {
  const int per_tile =
      kernel > 0 ? kernel : kernel == -1 ? memoir::SmallTiling::kQueries : memoir::LargeTiling::kQueries;
  const size_t pieces = words / 4;
  Late<uint4> late_queries(reinterpret_cast<const uint4*>(query), queries * pieces);
  Late<uint4> late_store(reinterpret_cast<const uint4*>(store), rows * pieces);
  Late<int32_t> late_count(count, count == nullptr ? 0 : 1);
  Late<int32_t> late_thresholds(min_overlap, rows);
  const auto spoil = [&] {
    late_queries.spoil();
    late_store.spoil();
    late_count.spoil();
    late_thresholds.spoil();
  };
  Scan scan{};
  scan.query = late_queries.memory();
  scan.store = late_store.memory();
  scan.query_stride = scan.store_stride = scan.pieces = words / 4;
  scan.queries = queries;
  scan.rows = rows;
  scan.query_tiles = (queries + per_tile - 1) / per_tile;
  scan.overlap = overlap;
  scan.count = late_count.memory();
  scan.edit = edit;
  scan.min_overlap = late_thresholds.memory();
  scan.min_overlap_stride = 1;
  const bool match = count != nullptr;
  std::vector<unsigned long long> scratch(scan.scratch_words());
  if (match) {
    memoir::predecessor = [&] { std::fill(scratch.begin(), scratch.end(), ~0ull); };
    memoir::run_grid(1, memoir::kClearThreads, [](int i) { return i; },
                     [&] { memoir::clear_scratch(scratch.data(), scan.scratch_words()); });
  }
  memoir::predecessor = [&] {
    late_queries.arrive();
    late_store.arrive();
    late_count.arrive();
    late_thresholds.arrive();
  };
  scan.best = scratch.data();
  scan.finished = reinterpret_cast<unsigned int*>(scan.best + queries);
  switch (kernel) {
    case 1:
      return popc<1>(scan, match, blocks, threads, spoil);
    case 2:
      return popc<2>(scan, match, blocks, threads, spoil);
    case 4:
      return popc<4>(scan, match, blocks, threads, spoil);
    case 8:
      return popc<8>(scan, match, blocks, threads, spoil);
    case -1:  // launched behind its predecessors
      memoir::predecessor();
      return mma<memoir::SmallTiling>(scan, match);
    default:
      memoir::predecessor();
      return mma<memoir::LargeTiling>(scan, match);
  }
}
