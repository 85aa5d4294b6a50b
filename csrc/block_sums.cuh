// Sums and maxima over a block, one barrier each.
#pragma once

#include "float_device.cuh"

#ifdef MEMOIR_FAST_EMULATE
#include "emulate_sums.h"
#else

namespace memoir {

constexpr int kWarpLanes = 32;

DEVICE unsigned int bits_of_float(float value) { return __float_as_uint(value); }
DEVICE int sum_of_warp(int value) { return __reduce_add_sync(0xffffffffu, value); }
DEVICE int largest_of_warp(int value) { return __reduce_max_sync(0xffffffffu, value); }
DEVICE int from_lane_below(int value, int apart) { return __shfl_up_sync(0xffffffffu, value, apart); }
DEVICE int lowest_bit(unsigned int word) { return __ffs(static_cast<int>(word)) - 1; }
DEVICE int shared_increment(int* at) { return atomicAdd(at, 1); }
DEVICE void shared_or(unsigned int* word, unsigned int bits) { atomicOr(word, bits); }
DEVICE float divided(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
DEVICE int anew(int value) {  // what is computed from it is computed again, and takes no registers meanwhile
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace memoir

#endif

namespace memoir {

// The first `count` values of a piece of 16 bytes.
template <class T>
DEVICE void copy_some(uint4& piece, const T* from, int count) {
  auto* values = reinterpret_cast<T*>(&piece);
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    if (i < count) values[i] = from[i];
  }
}

// Two sets of partial results in turns: whoever writes one has passed a barrier since the last that read it.
template <int kThreads>
struct BlockSums {
  static constexpr int kWarps = kThreads / kWarpLanes;
  int partial[2][kWarps];
  int maxima[kWarps];

  DEVICE int sum(int own, int turn) {
    int(&parts)[kWarps] = partial[turn % 2];
    const int of_warp = sum_of_warp(own), lane = threadIdx.x % kWarpLanes;
    if (lane == 0) parts[threadIdx.x / kWarpLanes] = of_warp;
    block_barrier();
    return sum_of_warp(lane < kWarps ? parts[lane] : 0);
  }

  // Once per kernel, of numbers that are not negative.
  DEVICE int largest(int own) {
    const int of_warp = largest_of_warp(own), lane = threadIdx.x % kWarpLanes;
    if (lane == 0) maxima[threadIdx.x / kWarpLanes] = of_warp;
    block_barrier();
    return largest_of_warp(lane < kWarps ? maxima[lane] : 0);
  }
};

}  // namespace memoir
