// The decision behind a search among routing codes on a GPU: a thread per prompt.
#pragma once

#include "device.cuh"
#include "hash_calls.h"

namespace memoir {

constexpr int kDecideThreads = 128;
constexpr int kCodesAtOnce = 4;  // asked for together

// Grid: kDecideThreads prompts a block.
GLOBAL LAUNCH_BOUNDS(kDecideThreads, 1) void decide(const CodesCall call) {
  const int64_t prompt = int64_t{blockIdx.x} * kDecideThreads + threadIdx.x;
  wait_for_predecessors();
  if (prompt >= call.prompts) return;
  const int32_t* rows = call.row + prompt * call.codes;
  const int32_t* overlaps = call.overlap + prompt * call.codes;
  int row = rows[0], overlap = overlaps[0];
#pragma unroll 1
  for (int start = 1; start < call.codes; start += kCodesAtOnce) {
    int other[kCodesAtOnce], bits[kCodesAtOnce];
#pragma unroll
    for (int i = 0; i < kCodesAtOnce; ++i) {  // the last one again, behind it, changes nothing
      const int q = start + i < call.codes ? start + i : call.codes - 1;
      other[i] = rows[q], bits[i] = overlaps[q];
    }
#pragma unroll
    for (int i = 0; i < kCodesAtOnce; ++i) {
      const bool alike = (other[i] >= 0) == (row >= 0);
      if (alike ? bits[i] > overlap : other[i] >= 0) row = other[i], overlap = bits[i];
    }
  }
  const bool there = row >= 0 && row < call.stored;
  const int at = there ? row : 0;
  const int room = call.room[at], owner = call.owner[at];
  call.route[prompt] = there && room > 0 ? owner : -1;
  call.best[prompt] = overlap;
}

}  // namespace memoir
