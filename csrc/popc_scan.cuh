// Few queries: every row is read once, straight into registers, and counted against kQueries queries from the
// first-level cache.
#pragma once

#include "overlap_kernels.cuh"

namespace memoir {

constexpr int kRowLanes = 8;  // threads that read one row: 128 bytes at a time
constexpr int kWarpRows = kWarp / kRowLanes;
constexpr int kScanThreads = 512;  // at most

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

// Maximum of the keys that `warps` warps left in shared memory, in every lane of the calling warp.
DEVICE unsigned long long best_of_warps(const unsigned long long* keys, int warps, int apart) {
  const int lane = threadIdx.x % kWarp;
  unsigned long long key = lane < warps ? keys[lane * apart] : 0;
  for (int other = kWarp / 2; other > 0; other /= 2) key = larger(key, from_lane(key, other));
  return key;
}

constexpr unsigned long long kNoRow = 1;  // the message of a block that has seen none: smaller than any key

// The first block collects the others' best keys, each a message in a place of its own, and writes the answer. It takes
// one journey through memory where a maximum, a ticket and the result take three; but all blocks must be able to run
// while the first one waits, which a grid of at most one turn of the device can.
template <int kQueries>
DEVICE void collect(const Scan& scan, int used, unsigned long long (&own)[kScanThreads / kWarp][kQueries]) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (blockIdx.x != 0) {
    for (int q = warp; q < kQueries; q += warps) {
      const unsigned long long key = best_of_warps(&own[0][q], warps, kQueries);
      if (lane == 0) post(scan.scratch + blockIdx.x * kQueries + q, larger(key, kNoRow));
    }
    return;
  }
  unsigned long long best = 0;  // of query threadIdx.x % kQueries: blockDim.x is a multiple
#pragma unroll 1
  for (int i = kQueries + threadIdx.x; i < static_cast<int>(gridDim.x) * kQueries; i += blockDim.x) {
    unsigned long long message;
    do {
      message = received(scan.scratch + i);
    } while (message == 0);
    scan.scratch[i] = 0;
    best = larger(best, message);
  }
  for (int apart = kQueries; apart < kWarp; apart *= 2) best = larger(best, from_lane(best, apart));
  if (lane < kQueries) own[warp][lane] = larger(own[warp][lane], best);
  block_barrier();
  for (int q = warp; q < used; q += warps) {
    const unsigned long long key = best_of_warps(&own[0][q], warps, kQueries);
    if (lane == 0) write_match(scan, q, key);
  }
}

// A warp holds four rows at a time, neighbours in memory; the blocks' warps take turns, so that no multiprocessor has
// much more to do than another. Launched dependently: only the store and the count are known to be worth fetching
// before the wait, and the queries and every value come after it.
template <int kQueries, bool kMatch, int kLoads, bool kPrefetch = true>
GLOBAL LAUNCH_BOUNDS(kScanThreads, 1) void popc_scan(const Scan scan) {
  SHARED unsigned long long block_best[kScanThreads / kWarp][kQueries];
  const int tile = blockIdx.x % scan.query_tiles, block = blockIdx.x / scan.query_tiles;
  const int blocks = gridDim.x / scan.query_tiles;
  const int first_query = tile * kQueries;
  const int used = scan.queries - first_query < kQueries ? scan.queries - first_query : kQueries;
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t step = static_cast<int64_t>(blocks) * warps * kWarpRows;
  int64_t first = (static_cast<int64_t>(warp) * blocks + block) * kWarpRows;
  if (kMatch) prefetch_line(scan.count);
  if (kPrefetch) prefetch_row(scan, first + lane / kRowLanes, lane % kRowLanes);
  wait_for_predecessors();
  const int count = rows_to_scan<kMatch>(scan);

  const uint4* query[kQueries];  // the last query stands in for those past the end; its result is dropped
  for (int q = 0; q < kQueries; ++q) {
    query[q] = scan.query + (first_query + (q < used ? q : used - 1)) * scan.query_stride;
  }
  unsigned long long best[kQueries] = {};
#pragma unroll 1
  for (; first < count; first += step) {
    const int64_t row = first + lane / kRowLanes;
    const int64_t inside = row < count ? row : count - 1;
    const uint4* masks = scan.store + inside * scan.store_stride;
    const int least = kMatch ? threshold(scan, inside) : 0;
    int overlap[kQueries] = {};
#pragma unroll 1
    for (int start = lane % kRowLanes; start < scan.pieces; start += kRowLanes * kLoads) {
      uint4 mask[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int piece = start + i * kRowLanes;
        mask[i] = piece < scan.pieces ? load_streaming(masks + piece) : uint4{};
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int piece = start + i * kRowLanes;
        if (piece >= scan.pieces) break;
#pragma unroll
        for (int q = 0; q < kQueries; ++q) overlap[q] += shared_bits(mask[i], load_cached(query[q] + piece));
      }
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      for (int apart = kRowLanes / 2; apart > 0; apart /= 2) overlap[q] += from_lane(overlap[q], apart);
      if (row >= count) continue;
      if (kMatch) {
        best[q] = larger(best[q], match_key(overlap[q], least, static_cast<int>(row)));
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
    if (scan.collect) {
      collect<kQueries>(scan, used, block_best);
    } else {
      unsigned long long key = 0;
      if (static_cast<int>(threadIdx.x) < used) {
        for (int w = 0; w < warps; ++w) key = larger(key, block_best[w][threadIdx.x]);
      }
      report(scan, tile, first_query, used, key);
    }
  }
}

}  // namespace memoir
