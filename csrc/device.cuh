// What the kernels ask of a GPU beyond C++, one instruction each. Under MEMOIR_FAST_EMULATE a test supplies the same
// names on the CPU and runs the kernels there, thread by thread.
#pragma once

#ifdef MEMOIR_FAST_EMULATE
#include "emulate.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

#define DEVICE __device__ __forceinline__
#define GLOBAL __global__
#define SHARED __shared__
#define SHARED_ALIGNED(bytes) __shared__ __align__(bytes)
#define LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

// One-bit matrix products run in hardware on compute capabilities 8 and 9; later ones emulate them, slower than POPC.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
#define HAS_BIT_MMA 1
#else
#define HAS_BIT_MMA 0
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_DEPENDENT_LAUNCH 1
#else
#define HAS_DEPENDENT_LAUNCH 0
#endif

namespace memoir {

// Programmatic dependent launch. A kernel so launched may start while the kernels before it still run or write: until
// this wait it must read nothing that they might write, the store included, and write nothing at all, because the
// memory of its outputs may still be theirs. Every thread waits, so that a kernel's end implies that of those before.
DEVICE void wait_for_predecessors() {
#if HAS_DEPENDENT_LAUNCH
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start, and wait, while this one runs.
DEVICE void admit_successor() {
#if HAS_DEPENDENT_LAUNCH
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Fetches the line of `from` into the second-level cache, for use after the wait. No value reaches the kernel and the
// second level is coherent, so this is right even where the line is still being written.
DEVICE void prefetch_line(const uint4* from) {
#if HAS_DEPENDENT_LAUNCH
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

// 16 bytes that nobody reads again soon: past the first-level cache. Volatile, as is the next one, lest the compiler
// move it before the wait; and not by the read-only path, since an earlier kernel may write there until then.
DEVICE uint4 load_streaming(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// 16 bytes that every warp reads: through the first-level cache.
DEVICE uint4 load_cached(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

DEVICE int count_bits(unsigned int word) { return __popc(word); }

template <class T>
DEVICE T from_lane(T value, int apart) {
  return __shfl_xor_sync(0xffffffffu, value, apart);
}

DEVICE void block_barrier() { __syncthreads(); }
DEVICE bool any_thread(bool holds) { return __syncthreads_or(holds); }  // a barrier too
DEVICE void memory_fence() { __threadfence(); }
DEVICE unsigned long long atomic_max(unsigned long long* at, unsigned long long value) { return atomicMax(at, value); }
DEVICE unsigned int atomic_increment(unsigned int* at) { return atomicAdd(at, 1u); }

// 16 bytes from global to shared memory; zeros where not `inside`, and then nothing is read.
DEVICE void copy_async(uint4* to, const uint4* from, bool inside) {
  const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows x 16 bytes of shared memory. Lane l gives the address of row l % 8 of matrix l / 8 and gets, of
// every matrix, word l % 4 of row l / 4.
DEVICE void load_matrices(unsigned int (&word)[4], const uint4* row) {
#if HAS_BIT_MMA
  const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
#endif
}

// sum += count of (16 x 256 bits AND 256 x 8 bits), the warp's threads holding the fragments that PTX prescribes.
DEVICE void multiply_bits(int (&sum)[4], unsigned int a0, unsigned int a1, unsigned int a2, unsigned int a3,
                          unsigned int b0, unsigned int b1) {
#if HAS_BIT_MMA
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

}  // namespace memoir

#endif
