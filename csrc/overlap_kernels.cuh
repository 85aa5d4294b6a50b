// What the two scans share: popcount(query AND row) on a GPU, for mask_overlap (kMatch = false: every overlap is written)
// and mask_match (kMatch = true: only the best row of each query leaves the chip). popc_scan.cuh is for few queries,
// mma_scan.cuh for many. The reduction is a maximum of integers, so its order leaves no trace in the result.
//
// Blocks meet in scratch memory that is zero before a scan and that the scan leaves at zero: no kernel has to clear it.
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

// The bits that `row` must share to match: a row of zeros never does.
DEVICE int threshold(const Scan& scan, int64_t row) {
  const int least = scan.min_overlap[row * scan.min_overlap_stride];
  return least < 1 ? 1 : least;
}

template <bool kMatch>
DEVICE int rows_to_scan(const Scan& scan) {
  if (!kMatch) return scan.rows;
  const int count = *scan.count;
  return count < 0 ? 0 : count > scan.rows ? scan.rows : count;
}

DEVICE unsigned long long larger(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

DEVICE void write_match(const Scan& scan, int query, unsigned long long best) {
  const auto high = static_cast<unsigned int>(best >> 32);
  scan.overlap[query] = static_cast<int>(high & ~kReached);
  scan.edit[query] = high >= kReached ? static_cast<int>(0xffffffffu - static_cast<unsigned int>(best)) : -1;
}

// Reports a block's best keys, one per thread below `used`; the last block of the tile to do so writes the answer and
// leaves zeros behind.
DEVICE void report(const Scan& scan, int tile, int first_query, int used, unsigned long long key) {
  unsigned long long* best = scan.scratch + first_query + threadIdx.x;
  auto* finished = reinterpret_cast<unsigned int*>(scan.scratch + scan.queries) + tile;
  if (static_cast<int>(threadIdx.x) < used && key != 0) atomic_max(best, key);
  memory_fence();
  block_barrier();
  const unsigned int others = gridDim.x / scan.query_tiles - 1;
  const bool last = any_thread(threadIdx.x == 0 && atomic_increment(finished) == others);
  if (!last || static_cast<int>(threadIdx.x) >= used) return;
  memory_fence();
  write_match(scan, first_query + threadIdx.x, atomic_exchange(best, 0));
  if (threadIdx.x == 0) *finished = 0;
}

constexpr int kWarp = 32;

}  // namespace memoir
