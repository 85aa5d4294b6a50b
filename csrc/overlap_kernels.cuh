// popcount(query AND row) on a GPU, in two forms: every overlap is written (kMatch = false), or only
// the best row of each query leaves the chip (kMatch = true). Two kernels: POPC for few queries, one-bit matrix
// instructions for many. The reduction is a maximum of integers, so its order leaves no trace in the result.
#pragma once

#include <cstdint>

#include "device.cuh"
#include "scan.h"

namespace memoir {

constexpr unsigned int kReached = 1u << 31;  // overlaps are smaller

// A match as one number: a row that reaches its threshold wins, then more bits, then the lower row. 0: no row at all.
DEVICE unsigned long long match_key(int overlap, int least, int row) {
  const unsigned int high = static_cast<unsigned int>(overlap) | (overlap >= least ? kReached : 0);
  return static_cast<unsigned long long>(high) << 32 | (0xffffffffu - static_cast<unsigned int>(row));
}

// The bits that `row` must share to match, as they are stored. Looked at where it is used: earlier, the rows' loads would
// wait for it.
DEVICE int stored_threshold(const Scan& scan, int64_t row) { return scan.min_overlap[row * scan.min_overlap_stride]; }
DEVICE int threshold(int stored) { return stored < 1 ? 1 : stored; }  // a row of zeros never matches

template <bool kMatch>
DEVICE int rows_to_scan(const Scan& scan) {
  if (!kMatch) return scan.rows;
  const int count = *scan.count;
  return count < 0 ? 0 : count > scan.rows ? scan.rows : count;
}

DEVICE unsigned long long larger(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

// Reports a block's best keys, one per thread below `used`; the last block of the tile to do so writes the answer.
DEVICE void report(const Scan& scan, int tile, int first_query, int used, unsigned long long key) {
  if (static_cast<int>(threadIdx.x) < used && key != 0) atomic_max(scan.best + first_query + threadIdx.x, key);
  memory_fence();
  block_barrier();
  const unsigned int others = gridDim.x / scan.query_tiles - 1;
  const bool last = any_thread(threadIdx.x == 0 && atomic_increment(scan.finished + tile) == others);
  if (!last || static_cast<int>(threadIdx.x) >= used) return;
  memory_fence();
  const int query = first_query + threadIdx.x;
  const unsigned long long best = atomic_max(scan.best + query, 0);
  const auto high = static_cast<unsigned int>(best >> 32);
  scan.overlap[query] = static_cast<int>(high & ~kReached);
  scan.edit[query] = high >= kReached ? static_cast<int>(0xffffffffu - static_cast<unsigned int>(best)) : -1;
}

constexpr int kWarp = 32;
constexpr int kRowLanes = 8;  // threads that read one row: 128 bytes at a time
constexpr int kScanThreads = 256;
constexpr int kResidentBlocks = 2;  // per multiprocessor, of kScanThreads

DEVICE int shared_bits(const uint4& a, const uint4& b) {
  return count_bits(a.x & b.x) + count_bits(a.y & b.y) + count_bits(a.z & b.z) + count_bits(a.w & b.w);
}

// A row's lines into the second-level cache, kRowLanes threads together. The first rows of all warps are 13 MB at 7,000
// rows of 14,336 bits, all of them, and 15 MB of a larger store on an H200: they fit.
DEVICE void prefetch_row(const Scan& scan, int64_t row, int lane) {
  constexpr int kLinePieces = 8;  // 128 bytes
  if (row >= scan.rows) return;
  const uint4* masks = scan.store + row * scan.store_stride;
#pragma unroll 1
  for (int piece = lane * kLinePieces; piece < scan.pieces; piece += kRowLanes * kLinePieces) {
    prefetch_line(masks + piece);
  }
}

// Few queries: every row is read once, straight into registers, and counted against kQueries queries from the
// first-level cache. A warp holds four rows at a time. Launched dependently: only the store is known to be worth
// fetching before the wait, and `count`, the queries and every value come after it.
template <int kQueries, bool kMatch>
GLOBAL LAUNCH_BOUNDS(kScanThreads, kResidentBlocks) void popc_scan(const Scan scan) {
  SHARED unsigned long long block_best[kScanThreads / kWarp][kQueries];
  constexpr int kLoads = kQueries == 1 ? 7 : kQueries == 2 ? 4 : kQueries == 4 ? 2 : 1;  // in flight per thread
  const int tile = blockIdx.x % scan.query_tiles;
  const int first_query = tile * kQueries;
  const int used = scan.queries - first_query < kQueries ? scan.queries - first_query : kQueries;
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int rows_per_warp = kWarp / kRowLanes;
  const int64_t step = static_cast<int64_t>(gridDim.x / scan.query_tiles) * warps * rows_per_warp;
  int64_t first = (static_cast<int64_t>(blockIdx.x / scan.query_tiles) * warps + warp) * rows_per_warp;
  prefetch_row(scan, first + lane / kRowLanes, lane % kRowLanes);
  wait_for_predecessors();
  const int count = rows_to_scan<kMatch>(scan);

  const uint4* query[kQueries];  // the last query stands in for those past the end; its result is dropped
  for (int q = 0; q < kQueries; ++q) {
    query[q] = scan.query + (first_query + (q < used ? q : used - 1)) * scan.query_stride;
  }
  unsigned long long best[kQueries] = {};
  for (; first < count; first += step) {
    const int64_t row = first + lane / kRowLanes;
    const uint4* masks = scan.store + (row < count ? row : count - 1) * scan.store_stride;
    const int stored = kMatch ? stored_threshold(scan, row < count ? row : count - 1) : 0;
    int overlap[kQueries] = {};
#pragma unroll kLoads
    for (int piece = lane % kRowLanes; piece < scan.pieces; piece += kRowLanes) {
      const uint4 mask = load_streaming(masks + piece);
#pragma unroll
      for (int q = 0; q < kQueries; ++q) overlap[q] += shared_bits(mask, load_cached(query[q] + piece));
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      for (int apart = kRowLanes / 2; apart > 0; apart /= 2) overlap[q] += from_lane(overlap[q], apart);
      if (row >= count) continue;
      if (kMatch) {
        best[q] = larger(best[q], match_key(overlap[q], threshold(stored), static_cast<int>(row)));
      } else if (q < used && lane % kRowLanes == 0) {
        scan.overlap[static_cast<int64_t>(first_query + q) * scan.rows + row] = overlap[q];
      }
    }
  }
  if constexpr (kMatch) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      for (int apart = kRowLanes; apart < kWarp; apart *= 2) best[q] = larger(best[q], from_lane(best[q], apart));
      if (lane == 0) block_best[warp][q] = best[q];
    }
    block_barrier();
    unsigned long long key = 0;
    if (static_cast<int>(threadIdx.x) < used) {
      for (int w = 0; w < warps; ++w) key = larger(key, block_best[w][threadIdx.x]);
    }
    report(scan, tile, first_query, used, key);
  }
}

// Many queries: tiles of queries x rows, staged in shared memory 64 bytes of every row at a time, multiplied by
// mma.m16n8k256 (AND, then count).
template <int kWarpsM, int kWarpsN, int kTilesM, int kTilesN>
struct Tiling {
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kQueries = kWarpsM * kTilesM * 16;
  static constexpr int kRows = kWarpsN * kTilesN * 8;
  static constexpr int kPieces = 4;  // per row and stage
  static constexpr int kStages = 3;
  static constexpr int kStage = (kQueries + kRows) * kPieces;
  static constexpr int kTilesOfQueries = kTilesM, kTilesOfRows = kTilesN, kWarpsOfRows = kWarpsN;
};
using LargeTiling = Tiling<2, 2, 4, 8>;  // 128 queries x 128 rows, 48 KiB of shared memory
using SmallTiling = Tiling<1, 4, 2, 4>;  // 32 queries x 128 rows

// Where a piece of a line lies in a stage: eight lines' pieces of one number fall into different banks.
DEVICE int place(int line, int piece) { return line * 4 + (piece ^ (line / 2 % 4)); }

template <class T>
DEVICE void stage_pieces(const Scan& scan, uint4* stage, int first_query, int64_t first_row, int first_piece) {
  constexpr int kLines = T::kThreads / T::kPieces;  // that the block copies at a time
  const int line = threadIdx.x / T::kPieces, piece = threadIdx.x % T::kPieces;
  const bool whole = first_piece + piece < scan.pieces;
#pragma unroll
  for (int i = 0; i < T::kQueries; i += kLines) {
    const int64_t query = first_query + line + i;
    const bool inside = whole && query < scan.queries;
    const uint4* from = inside ? scan.query + query * scan.query_stride + first_piece + piece : scan.query;
    copy_async(stage + place(line + i, piece), from, inside);
  }
#pragma unroll
  for (int i = 0; i < T::kRows; i += kLines) {
    const int64_t row = first_row + line + i;
    const bool inside = whole && row < scan.rows;
    const uint4* from = inside ? scan.store + row * scan.store_stride + first_piece + piece : scan.query;
    copy_async(stage + place(T::kQueries + line + i, piece), from, inside);
  }
}

// The fragments come from shared memory in the order of their registers: of queries a0 to a3 of one product, of rows b0
// and b1 of two.
template <class T>
DEVICE void multiply_stage(const uint4* stage, int warp_m, int warp_n, int lane,
                           int (&sum)[T::kTilesOfQueries][T::kTilesOfRows][4]) {
  static_assert(T::kPieces == 4, "two products per stage");
  const uint4* queries = stage + warp_m * T::kTilesOfQueries * 16 * T::kPieces;
  const uint4* rows = stage + (T::kQueries + warp_n * T::kTilesOfRows * 8) * T::kPieces;
  const int line = lane % 8, matrix = lane / 8;
  const int of_query = place(line + matrix % 2 * 8, matrix / 2), of_row = place(line, matrix);
  unsigned int a[T::kTilesOfQueries][2][4];
#pragma unroll
  for (int m = 0; m < T::kTilesOfQueries; ++m) {
    load_matrices(a[m][0], queries + m * 16 * T::kPieces + of_query);
    load_matrices(a[m][1], queries + m * 16 * T::kPieces + (of_query ^ 2));  // two pieces on
  }
#pragma unroll
  for (int n = 0; n < T::kTilesOfRows; ++n) {
    unsigned int b[4];
    load_matrices(b, rows + n * 8 * T::kPieces + of_row);
#pragma unroll
    for (int m = 0; m < T::kTilesOfQueries; ++m) {
      multiply_bits(sum[m][n], a[m][0][0], a[m][0][1], a[m][0][2], a[m][0][3], b[0], b[1]);
      multiply_bits(sum[m][n], a[m][1][0], a[m][1][1], a[m][1][2], a[m][1][3], b[2], b[3]);
    }
  }
}

template <class T, bool kMatch>
GLOBAL LAUNCH_BOUNDS(T::kThreads, 2) void mma_scan(const Scan scan) {
#if HAS_BIT_MMA
  SHARED_ALIGNED(16) uint4 stages[T::kStages][T::kStage];
  const int tile = blockIdx.x % scan.query_tiles;
  const int first_query = tile * T::kQueries;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / scan.query_tiles) * T::kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_m = warp / T::kWarpsOfRows, warp_n = warp % T::kWarpsOfRows;
  const int count = rows_to_scan<kMatch>(scan);
  const int steps = first_row < count ? (scan.pieces + T::kPieces - 1) / T::kPieces : 0;
  static_assert(T::kRows <= T::kThreads, "a thread a row's threshold");
  const bool has_row = kMatch && static_cast<int>(threadIdx.x) < T::kRows && first_row + threadIdx.x < count;
  const int stored = has_row ? stored_threshold(scan, first_row + threadIdx.x) : 0;  // fetched while products run

  int sum[T::kTilesOfQueries][T::kTilesOfRows][4] = {};
  for (int step = 0; step < T::kStages - 1; ++step) {
    if (step < steps) stage_pieces<T>(scan, stages[step], first_query, first_row, step * T::kPieces);
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<T::kStages - 2>();
    block_barrier();  // the stage of this step is complete, and everybody has left that of the step before
    const int ahead = step + T::kStages - 1;
    if (ahead < steps) {
      stage_pieces<T>(scan, stages[ahead % T::kStages], first_query, first_row, ahead * T::kPieces);
    }
    commit_copies();
    multiply_stage<T>(stages[step % T::kStages], warp_m, warp_n, lane, sum);
  }
  wait_for_copies<0>();
  block_barrier();

  // A thread holds, of each 16 x 8 product, rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the one after.
  auto* block_best = reinterpret_cast<unsigned long long*>(stages);  // [kWarpsOfRows][kQueries]
  auto* least = reinterpret_cast<int*>(block_best + T::kWarpsOfRows * T::kQueries);  // [kRows]
  if constexpr (kMatch) {
    if (static_cast<int>(threadIdx.x) < T::kRows) least[threadIdx.x] = threshold(stored);
    block_barrier();
  }
#pragma unroll
  for (int m = 0; m < T::kTilesOfQueries; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_block = (warp_m * T::kTilesOfQueries + m) * 16 + half * 8 + lane / 4;
      unsigned long long best = 0;
#pragma unroll
      for (int n = 0; n < T::kTilesOfRows; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int of_block = (warp_n * T::kTilesOfRows + n) * 8 + lane % 4 * 2 + side;
          const int64_t row = first_row + of_block;
          const int overlap = sum[m][n][half * 2 + side];
          if (row >= count) continue;
          if (kMatch) {
            best = larger(best, match_key(overlap, least[of_block], static_cast<int>(row)));
          } else if (first_query + in_block < scan.queries) {
            scan.overlap[static_cast<int64_t>(first_query + in_block) * scan.rows + row] = overlap;
          }
        }
      }
      if (kMatch) {
        best = larger(best, from_lane(best, 1));
        best = larger(best, from_lane(best, 2));
        if (lane % 4 == 0) block_best[warp_n * T::kQueries + in_block] = best;
      }
    }
  }
  if constexpr (kMatch) {
    block_barrier();
    unsigned long long key = 0;
    const int used = scan.queries - first_query < T::kQueries ? scan.queries - first_query : T::kQueries;
    if (static_cast<int>(threadIdx.x) < used) {
      for (int w = 0; w < T::kWarpsOfRows; ++w) key = larger(key, block_best[w * T::kQueries + threadIdx.x]);
    }
    report(scan, tile, first_query, used, key);
  }
#endif
}

}  // namespace memoir
