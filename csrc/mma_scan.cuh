// Many queries: tiles of queries x rows, staged in shared memory 64 or 128 bytes of every row at a time, multiplied by
// mma.m16n8k256 (AND, then count).
#pragma once

#include "overlap_kernels.cuh"

namespace memoir {

// kPieces 4 or 8: of 16 bytes, per row and stage. kAtOnce: blocks on a multiprocessor, for the compiler's registers.
template <int kWarpsM, int kWarpsN, int kTilesM, int kTilesN, int kPiecesOfStage, int kStagesInFlight, int kBlocksAtOnce>
struct Tiling {
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kQueries = kWarpsM * kTilesM * 16;
  static constexpr int kRows = kWarpsN * kTilesN * 8;
  static constexpr int kPieces = kPiecesOfStage;
  static constexpr int kStages = kStagesInFlight;
  static constexpr int kStage = (kQueries + kRows) * kPieces;
  static constexpr int kAtOnce = kBlocksAtOnce;
  static constexpr int kShared = kStages * kStage * 16;  // bytes
  static constexpr int kTilesOfQueries = kTilesM, kTilesOfRows = kTilesN, kWarpsOfRows = kWarpsN;
};
using LargeTiling = Tiling<2, 2, 4, 8, 4, 3, 2>;  // 128 queries x 128 rows, 48 KiB of shared memory
using SmallTiling = Tiling<1, 4, 2, 2, 8, 6, 3>;  // 32 queries x 64 rows, 72 KiB

// Where a piece of a line lies in a stage: eight lines' pieces of one number fall into different banks.
template <class T>
DEVICE int place(int line, int piece) {
  return line * T::kPieces + (piece ^ (T::kPieces == 8 ? line % 8 : line / 2 % 4));
}

template <class T>
DEVICE void stage_pieces(const Scan& scan, uint4* stage, int first_query, int64_t first_row, int first_piece) {
  constexpr int kLines = T::kThreads / T::kPieces;  // that the block copies at a time
  const int line = threadIdx.x / T::kPieces, piece = threadIdx.x % T::kPieces;
  const bool whole = first_piece + piece < scan.pieces;
#pragma unroll
  for (int i = 0; i < T::kQueries; i += kLines) {
    if (T::kQueries % kLines != 0 && line + i >= T::kQueries) break;
    const int64_t query = first_query + line + i;
    const bool inside = whole && query < scan.queries;
    const uint4* from = inside ? scan.query + query * scan.query_stride + first_piece + piece : scan.query;
    copy_async(stage + place<T>(line + i, piece), from, inside);
  }
#pragma unroll
  for (int i = 0; i < T::kRows; i += kLines) {
    if (T::kRows % kLines != 0 && line + i >= T::kRows) break;
    const int64_t row = first_row + line + i;
    const bool inside = whole && row < scan.rows;
    const uint4* from = inside ? scan.store + row * scan.store_stride + first_piece + piece : scan.query;
    copy_async(stage + place<T>(T::kQueries + line + i, piece), from, inside);
  }
}

// The fragments come from shared memory in the order of their registers: of queries a0 to a3 of one product, of rows b0
// and b1 of two. Four pieces of a line, two products, at a time.
template <class T>
DEVICE void multiply_stage(const uint4* stage, int warp_m, int warp_n, int lane,
                           int (&sum)[T::kTilesOfQueries][T::kTilesOfRows][4]) {
  const uint4* queries = stage + warp_m * T::kTilesOfQueries * 16 * T::kPieces;
  const uint4* rows = stage + (T::kQueries + warp_n * T::kTilesOfRows * 8) * T::kPieces;
  const int line = lane % 8, matrix = lane / 8;
#pragma unroll
  for (int half = 0; half < T::kPieces; half += 4) {
    const int of_query = place<T>(line + matrix % 2 * 8, half + matrix / 2), of_row = place<T>(line, half + matrix);
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
}

template <class T, bool kMatch>
GLOBAL LAUNCH_BOUNDS(T::kThreads, T::kAtOnce) void mma_scan(const Scan scan) {
#if HAS_BIT_MMA
  auto* stages = reinterpret_cast<uint4*>(dynamic_shared());  // [kStages][kStage]
  const int tile = blockIdx.x % scan.query_tiles;
  const int first_query = tile * T::kQueries;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / scan.query_tiles) * T::kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_m = warp / T::kWarpsOfRows, warp_n = warp % T::kWarpsOfRows;
  const int count = rows_to_scan<kMatch>(scan);
  const int steps = first_row < count ? (scan.pieces + T::kPieces - 1) / T::kPieces : 0;
  static_assert(T::kRows <= T::kThreads && T::kQueries <= T::kThreads, "a thread a row's threshold, and a query's key");
  const bool has_row = kMatch && static_cast<int>(threadIdx.x) < T::kRows && first_row + threadIdx.x < count;
  const int own_threshold = has_row ? threshold(scan, first_row + threadIdx.x) : 0;  // fetched while products run

  int sum[T::kTilesOfQueries][T::kTilesOfRows][4] = {};
  for (int step = 0; step < T::kStages - 1; ++step) {
    if (step < steps) stage_pieces<T>(scan, stages + step * T::kStage, first_query, first_row, step * T::kPieces);
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<T::kStages - 2>();
    block_barrier();  // the stage of this step is complete, and everybody has left that of the step before
    const int ahead = step + T::kStages - 1;
    if (ahead < steps) {
      stage_pieces<T>(scan, stages + ahead % T::kStages * T::kStage, first_query, first_row, ahead * T::kPieces);
    }
    commit_copies();
    multiply_stage<T>(stages + step % T::kStages * T::kStage, warp_m, warp_n, lane, sum);
  }
  wait_for_copies<0>();
  block_barrier();

  // A thread holds, of each 16 x 8 product, rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the one after.
  auto* block_best = reinterpret_cast<unsigned long long*>(stages);  // [kWarpsOfRows][kQueries]
  auto* least = reinterpret_cast<int*>(block_best + T::kWarpsOfRows * T::kQueries);  // [kRows]
  if constexpr (kMatch) {
    if (static_cast<int>(threadIdx.x) < T::kRows) least[threadIdx.x] = own_threshold;
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
