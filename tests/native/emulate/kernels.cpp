// Runs the GPU kernels of csrc/popc_scan.cuh and csrc/mma_scan.cuh on the CPU, for the test beside it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "clear_scratch.cuh"
#include "mma_scan.cuh"
#include "popc_scan.cuh"
#include "scratch_pool.h"

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

template <int kQueries, int kLoads>
void popc(const Scan& scan, bool match, int blocks, int threads, const std::function<void()>& spoil) {
  const auto backwards = [=](int i) {
    spoil();
    return blocks * scan.query_tiles - 1 - i;
  };
  memoir::run_grid(blocks * scan.query_tiles, threads, backwards, [&] {
    match ? memoir::popc_scan<kQueries, true, kLoads>(scan) : memoir::popc_scan<kQueries, false, kLoads>(scan);
  });
}

template <class T>
void mma(const Scan& scan, bool match) {
  const int blocks = std::max(1, (scan.rows + T::kRows - 1) / T::kRows);
  const auto backwards = [=](int i) { return blocks * scan.query_tiles - 1 - i; };
  memoir::run_grid(blocks * scan.query_tiles, T::kThreads, backwards, [&] {
    match ? memoir::mma_scan<T, true>(scan) : memoir::mma_scan<T, false>(scan);
  }, T::kShared);
}

}  // namespace

// kernel: queries of a POPC tile, 1, 2, 4 or 8; or -1 for the small and -2 for the large matrix tiling.
// count: a pointer selects mask_match, nullptr mask_overlap. Masks have `words` int32 per row, without gaps.
// scratch: `scratch_words` zeros for mask_match, as it leaves them. Returns whether that is enough.
extern "C" bool run_scan(int kernel, int blocks, int threads, const int32_t* query, int queries, const int32_t* store,
                         int rows, int words, const int32_t* count, const int32_t* min_overlap,
                         int32_t* edit, int32_t* overlap, unsigned long long* scratch, int64_t scratch_words,
                         bool collect) {
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
  scan.collect = collect;
  scan.scratch = scratch;
  const int64_t needed = collect ? int64_t{blocks} * per_tile : queries + (scan.query_tiles + 1) / 2;
  if (match && needed > scratch_words) return false;
  memoir::predecessor = [&] {
    late_queries.arrive();
    late_store.arrive();
    late_count.arrive();
    late_thresholds.arrive();
  };
  switch (kernel) {
    case 1:
      popc<1, 7>(scan, match, blocks, threads, spoil);
      break;
    case 2:
      popc<2, 4>(scan, match, blocks, threads, spoil);
      break;
    case 4:
      popc<4, 2>(scan, match, blocks, threads, spoil);
      break;
    case 8:
      popc<8, 1>(scan, match, blocks, threads, spoil);
      break;
    case -1:  // launched behind its predecessors
      memoir::predecessor();
      mma<memoir::SmallTiling>(scan, match);
      break;
    default:
      memoir::predecessor();
      mma<memoir::LargeTiling>(scan, match);
  }
  return true;
}

// Zeros for a scan, over memory that a kernel before still writes.
extern "C" void clear(unsigned long long* scratch, int64_t words) {
  memoir::predecessor = [&] { std::fill(scratch, scratch + words, ~0ull); };
  memoir::run_grid(1, memoir::kClearThreads, [](int i) { return i; }, [&] { memoir::clear_words(scratch, words); });
}

// One pool's answers to requests: request i is for words[i] words, of stream streams[i] or, below 0, of a captured call.
extern "C" void scratch_places(const int64_t* streams, const int64_t* words, int64_t* places, int requests) {
  memoir::ScratchPool pool;
  for (int i = 0; i < requests; ++i) {
    places[i] = streams[i] < 0 ? pool.of_captured_call(words[i]) : pool.of_stream(streams[i], words[i]);
  }
}
