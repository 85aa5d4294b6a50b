// Columns of masks on a GPU: a block lists the set bits of one mask in order.
#pragma once

#include "block_sums.cuh"
#include "hash_calls.h"

namespace memoir {

constexpr int kColumnsThreads = 512;

struct ColumnsShared {
  int of_warp[kColumnsThreads / kWarpLanes];
};

// The first row of the same route. Called by a whole warp.
DEVICE int first_alike(const int32_t* route, int row, int edit, int lane) {
#pragma unroll 1
  for (int start = 0; start < row; start += kWarpLanes) {
    const int other = start + lane;
    const int apart = largest_of_warp(other < row && route[other] == edit ? row - other : 0);
    if (apart > 0) return row - apart;
  }
  return row;
}

// Grid: a block per row. A thread counts its word's bits, learns how many come before, and writes their numbers.
GLOBAL LAUNCH_BOUNDS(kColumnsThreads, 2) void list_columns(const ColumnsCall call) {
  SHARED ColumnsShared shared;
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  wait_for_predecessors();
  admit_successor();
  const int32_t* mask = call.mask + row * call.mask_row;
  int32_t* columns = call.columns + row * call.k;
  int total = 0, words = call.words, before = 0;  // before: the rows of memory of the pages before
  if (call.route != nullptr) {
    const int edit = call.route[row];
    const bool there = edit < call.masks;
    const int64_t of = edit < 0 || !there ? 0 : edit;
    mask = call.mask + of * call.mask_row;
    before = there ? call.page[of] * call.width : 0;
    words = there ? words : 0;
    if (warp == 0) {
      const int first = edit < 0 || !there ? -1 : first_alike(call.route, static_cast<int>(row), edit, lane);
      if (lane == 0) call.first[row] = first;
    }
  }
#pragma unroll 1
  for (int start = 0; start < words; start += kColumnsThreads) {
    const int w = start + static_cast<int>(threadIdx.x);
    auto word = static_cast<unsigned int>(w < words ? mask[w] : 0);
    const int own = count_bits(word);
    int through = own;
#pragma unroll
    for (int apart = 1; apart < kWarpLanes; apart *= 2) {
      const int below = from_lane_below(through, apart);
      if (lane >= apart) through += below;
    }
    block_barrier();  // everybody has left of_warp
    if (lane == kWarpLanes - 1) shared.of_warp[warp] = through;
    block_barrier();
    int place = total + through - own;
#pragma unroll
    for (int other = 0; other < kColumnsThreads / kWarpLanes; ++other) {
      place += other < warp ? shared.of_warp[other] : 0;
      total += shared.of_warp[other];
    }
#pragma unroll 1
    for (; word != 0 && place < call.k; word &= word - 1, ++place) columns[place] = before + w * 32 + lowest_bit(word);
  }
#pragma unroll 1
  for (int j = total + threadIdx.x; j < call.k; j += kColumnsThreads) columns[j] = before - 1;
}

}  // namespace memoir
