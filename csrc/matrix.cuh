// What the residual product asks of a GPU beside device.cuh: blocks that work together (sm_90 and later), and tensor cores.
#pragma once

#include "float_device.cuh"

#ifdef MEMOIR_FAST_EMULATE
#include "emulate_matrix.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#else
#define HAS_CLUSTERS 0
#endif

namespace memoir {

// The block's shared memory, as much as its launch asked for.
DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memoir_dynamic_shared[];
  return memoir_dynamic_shared;
}

// A number that a kernel before may have written: from the second-level cache, since this block may have started early,
// and in its place, which is behind a wait or, on purpose, not.
DEVICE int load_written(const int* from) {
  int value;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}

// All threads of all blocks of a cluster; what one wrote to shared memory before, the others read after.
DEVICE void cluster_barrier() {
#if HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Four floats from where `own` lies in the shared memory of block `rank` of the cluster.
DEVICE float4 load_from_block(const float4* own, int rank) {
  float4 value = {};
#if HAS_CLUSTERS
  unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(own));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
#endif
  return value;
}

// Four matrices of 8 rows x 16 bytes of shared memory, as load_matrices; not bound to one-bit products.
DEVICE void load_fragments(unsigned int (&word)[4], const uint4* row) {
  const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix of 8 x 8 two-byte values transposed: lane l gets values 2 * (l % 4) and the next of column l / 4.
DEVICE void load_fragments_transposed(unsigned int (&word)[4], const uint4* row) {
  const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}

// sum += (16 x 16) x (16 x 8), the warp's threads holding the fragments that PTX prescribes; products are exact.
template <class T>
DEVICE void multiply_halves(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1);
template <>
DEVICE void multiply_halves<BFloat16>(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEVICE void multiply_halves<Half>(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace memoir

#endif
