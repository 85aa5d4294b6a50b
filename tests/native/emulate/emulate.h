// csrc/device.cuh on the CPU: a block's threads run together, a warp's instructions meet at a barrier, and
// mma.m16n8k256 distributes its fragments as the PTX manual says. Slow, exact, and checked by the sanitizers.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#ifdef EMULATE_THREADS
#include "threads.h"
#else
#include "fibers.h"
#endif

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct Index {
  unsigned int x = 0;
};

#define threadIdx (memoir::self().thread_index)
#define blockIdx (memoir::self().block_index)
#define blockDim (memoir::self().block_size)
#define gridDim (memoir::self().grid_size)
#define DEVICE inline
#define GLOBAL inline
#define LAUNCH_BOUNDS(threads, blocks)
// One copy for all threads of the block that runs; blocks run one after another.
#define SHARED static
#define SHARED_ALIGNED(bytes) alignas(bytes) static
#define HAS_BIT_MMA 1

namespace memoir {

constexpr int kLanes = 32;

struct Warp {
  Meeting meeting{kLanes};
  std::array<std::array<uint64_t, 8>, kLanes> slots{};

  // Every lane shows its values and then looks at the others'.
  template <class F>
  auto exchange(int lane, const std::array<uint64_t, 8>& mine, const F& look) {
    slots[lane] = mine;
    meeting.arrive_and_wait();
    const auto result = look(slots);
    meeting.arrive_and_wait();
    return result;
  }
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / kLanes) {
    for (auto& warp : warps) warp = std::make_unique<Warp>();
  }
  Meeting barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  std::atomic<int> holding{0};
  std::once_flag waited;
};

struct PendingCopy {
  uint4* to;
  uint4 value;
};

struct Cluster;

// What a thread has of its own.
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
  Block* block;
  Cluster* cluster = nullptr;
  unsigned char* shared = nullptr;
  // Copies land as late as the waits allow, so that a missing wait shows.
  std::vector<std::vector<PendingCopy>> pending{1};
};
inline Thread& self() { return *static_cast<Thread*>(own_data()); }

inline Warp& warp() { return *self().block->warps[threadIdx.x / kLanes]; }
inline int lane() { return static_cast<int>(threadIdx.x % kLanes); }

inline void admit_successor() {}
inline void prefetch_line(const uint4* from) {  // a sanitizer sees where
  static_cast<void>(*reinterpret_cast<const volatile unsigned int*>(from));
}

// A device faults on an instruction of 16 bytes whose address is no multiple of 16.
template <class T>
T* on_piece(T* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    std::fputs("misaligned address of 16 bytes\n", stderr);
    std::abort();
  }
  return address;
}

inline uint4 load_streaming(const uint4* from) { return *on_piece(from); }
inline uint4 load_cached(const uint4* from) { return *on_piece(from); }
inline int count_bits(unsigned int word) { return __builtin_popcount(word); }

template <class T>
T from_lane(T value, int apart) {
  return warp().exchange(lane(), {static_cast<uint64_t>(value)},
                         [&](const auto& slots) { return static_cast<T>(slots[lane() ^ apart][0]); });
}

inline void block_barrier() { self().block->barrier.arrive_and_wait(); }

// The kernel before this one: ends when all threads of the block wait, and only then leaves its results.
inline std::function<void()> predecessor;
inline void wait_for_predecessors() {
  block_barrier();
  std::call_once(self().block->waited, predecessor);
}

inline bool any_thread(bool holds) {
  std::atomic<int>& holding = self().block->holding;
  holding += holds;
  block_barrier();
  const bool any = holding != 0;
  block_barrier();
  holding = 0;
  block_barrier();
  return any;
}
inline void memory_fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

inline unsigned long long atomic_max(unsigned long long* at, unsigned long long value) {
  std::atomic_ref<unsigned long long> target(*at);
  unsigned long long seen = target.load();
  while (seen < value && !target.compare_exchange_weak(seen, value)) {
  }
  return seen;
}
inline unsigned int atomic_increment(unsigned int* at) { return std::atomic_ref<unsigned int>(*at).fetch_add(1); }

inline void copy_async(uint4* to, const uint4* from, bool inside) {
  on_piece(from);  // also where nothing is read
  self().pending.back().push_back({on_piece(to), inside ? *from : uint4{}});
}
inline void commit_copies() { self().pending.emplace_back(); }
template <int kPending>
void wait_for_copies() {
  auto& pending = self().pending;
  while (static_cast<int>(pending.size()) > kPending + 1) {
    for (const PendingCopy& copy : pending.front()) *copy.to = copy.value;
    pending.erase(pending.begin());
  }
}

inline void load_matrices(unsigned int (&word)[4], const uint4* row) {
  const auto words = warp().exchange(lane(), {reinterpret_cast<uint64_t>(on_piece(row))}, [&](const auto& slots) {
    std::array<unsigned int, 4> mine{};
    for (int i = 0; i < 4; ++i) {
      mine[i] = reinterpret_cast<const unsigned int*>(slots[i * 8 + lane() / 4][0])[lane() % 4];
    }
    return mine;
  });
  std::copy(words.begin(), words.end(), word);
}

// Fragments as in "Matrix fragments for mma.m16n8k256": group = lane / 4, member = lane % 4.
//   a0: row group, bits 32 * member of the first 128;  a1: row group + 8;  a2, a3: the same rows, second 128 bits
//   b0: column group, bits 32 * member of the first 128;  b1: second 128
//   c0, c1: row group, columns 2 * member and + 1;  c2, c3: row group + 8
inline void multiply_bits(int (&sum)[4], unsigned int a0, unsigned int a1, unsigned int a2, unsigned int a3,
                          unsigned int b0, unsigned int b1) {
  const int group = lane() / 4, member = lane() % 4;
  const auto product = warp().exchange(lane(), {a0, a1, a2, a3, b0, b1}, [&](const auto& slots) {
    std::array<int, 4> c{};
    for (int i = 0; i < 4; ++i) {
      const int column = 2 * member + i % 2;
      for (int part = 0; part < 4; ++part) {
        const auto& a = slots[group * 4 + part];
        const auto& b = slots[column * 4 + part];
        c[i] += __builtin_popcountll(a[i / 2] & b[4]) + __builtin_popcountll(a[i / 2 + 2] & b[5]);
      }
    }
    return c;
  });
  for (int i = 0; i < 4; ++i) sum[i] += product[i];
}

// Runs a kernel: blocks in the given order, the threads of a block together.
inline void run_grid(unsigned int blocks, unsigned int threads, const std::function<int(int)>& order,
                     const std::function<void()>& kernel) {
  for (unsigned int i = 0; i < blocks; ++i) {
    Block current(threads);
    const auto index = static_cast<unsigned int>(order(i));
    run_together(threads, [&](unsigned int t) {
      Thread thread{{t}, {index}, {threads}, {blocks}, &current};
      own_data() = &thread;
      kernel();
    });
  }
}

}  // namespace memoir
