// csrc/matrix.cuh on the CPU: the blocks of a cluster run together, each with a shared memory of its own, and
// mma.m16n8k16 distributes its fragments as the PTX manual says.
#pragma once

#include <cstdlib>

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

#define HAS_CLUSTERS 1

namespace memoir {

struct Cluster {
  Cluster(int blocks, int threads, size_t bytes) : barrier(static_cast<size_t>(blocks) * threads) {
    for (int i = 0; i < blocks; ++i) {
      auto* memory = static_cast<unsigned char*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16));
      std::memset(memory, 0xff, bytes);  // NaN: what is used was written
      shared.emplace_back(memory, &std::free);
      running.push_back(std::make_unique<Block>(threads));
    }
  }
  Meeting barrier;
  std::vector<std::unique_ptr<unsigned char, void (*)(void*)>> shared;
  std::vector<std::unique_ptr<Block>> running;
};

inline int load_written(const int* from) { return *from; }
inline unsigned char* dynamic_shared() { return self().shared; }
inline void cluster_barrier() { self().cluster->barrier.arrive_and_wait(); }
inline float4 load_from_block(const float4* own, int rank) {
  const auto offset = reinterpret_cast<const unsigned char*>(on_piece(own)) - self().shared;
  float4 value;
  std::memcpy(&value, self().cluster->shared[rank].get() + offset, sizeof value);
  return value;
}

inline void load_fragments(unsigned int (&word)[4], const uint4* row) { load_matrices(word, row); }

inline void load_fragments_transposed(unsigned int (&word)[4], const uint4* row) {
  const auto words = warp().exchange(lane(), {reinterpret_cast<uint64_t>(on_piece(row))}, [&](const auto& slots) {
    std::array<unsigned int, 4> mine{};
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        const auto from = slots[i * 8 + lane() % 4 * 2 + half][0];
        uint16_t value;
        std::memcpy(&value, reinterpret_cast<const unsigned char*>(from) + lane() / 4 * 2, sizeof value);
        mine[i] |= static_cast<unsigned int>(value) << (16 * half);
      }
    }
    return mine;
  });
  std::copy(words.begin(), words.end(), word);
}

// Fragments as in "Matrix fragments for mma.m16n8k16": group = lane / 4, member = lane % 4.
//   a0: row group, k 2 * member and + 1;  a1: row group + 8;  a2, a3: the same rows, k + 8
//   b0: column group, k 2 * member and + 1;  b1: k + 8
//   c0, c1: row group, columns 2 * member and + 1;  c2, c3: row group + 8
template <class T>
void multiply_halves(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  const int group = lane() / 4, member = lane() % 4;
  const auto value = [](uint64_t word, int k) {
    return widen(T{static_cast<uint16_t>(word >> (k % 2 * 16))});
  };
  const auto product = warp().exchange(lane(), {a[0], a[1], a[2], a[3], b0, b1}, [&](const auto& slots) {
    std::array<float, 4> c{};
    for (int i = 0; i < 4; ++i) {
      const int column = 2 * member + i % 2;
      for (int k = 0; k < 16; ++k) {
        const auto& of_a = slots[group * 4 + k % 8 / 2];
        const auto& of_b = slots[column * 4 + k % 8 / 2];
        c[i] += value(of_a[i / 2 + k / 8 * 2], k) * value(of_b[4 + k / 8], k);
      }
    }
    return c;
  });
  for (int i = 0; i < 4; ++i) sum[i] += product[i];
}

// Runs a kernel whose blocks come in clusters of `size`: the clusters one after another, backwards.
inline void run_clusters(int clusters, int size, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  for (int i = clusters - 1; i >= 0; --i) {
    Cluster together(size, threads, shared_bytes);
    run_together(static_cast<size_t>(size) * threads, [&](unsigned int number) {
      const unsigned int rank = number / threads, index = i * size + rank;
      const unsigned int blocks = clusters * size, of_block = threads;
      Thread thread{{number % threads}, {index}, {of_block}, {blocks}, together.running[rank].get()};
      thread.cluster = &together, thread.shared = together.shared[rank].get();
      own_data() = &thread;
      kernel();
    });
  }
}

}  // namespace memoir
