// Zeros for a dependent scan. A memset between two kernels would part them: only kernels can overlap.
#pragma once

#include "device.cuh"
#include "scan.h"

namespace memoir {

constexpr int kClearThreads = 256;

// One block. The scan after it starts at once and prefetches the store while this kernel waits for those before it.
GLOBAL LAUNCH_BOUNDS(kClearThreads, 1) void clear_scratch(unsigned long long* scratch, int64_t words) {
  admit_successor();
  wait_for_predecessors();  // until then the scratch memory may be theirs
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < words; i += kClearThreads) scratch[i] = 0;
}

}  // namespace memoir
