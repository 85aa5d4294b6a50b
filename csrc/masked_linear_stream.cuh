// masked_linear of sequences of up to eight tokens: rows of memory stream through registers, products and sums in float32.
#pragma once

#include "masked_linear_common.cuh"

namespace memoir {

constexpr int kChunk = 512;  // active columns whose inputs a block holds at a time
constexpr int kChunkOfThread = kChunk / kLinearThreads;

// A column's input of every token.
template <int kRows>
struct alignas(kRows >= 4 ? 16 : 4 * kRows) Inputs {
  float of[kRows];
};

template <class T, int kRows>
struct Stream {
  static constexpr int kValues = 16 / sizeof(T);
  static constexpr int kOutputs = kRows == 1 ? 128 : 256;       // of one cluster
  static constexpr int kPieces = kOutputs / kValues;       // threads that read one row of memory together
  static constexpr int kSlots = kLinearThreads / kPieces;      // rows of memory that a block reads at a time
  static constexpr int kAhead = 4;                             // loads in flight per thread, beside those in use
  static_assert(kChunk % (kSlots * kAhead) == 0);

  Inputs<kRows> inputs[kChunk];
  float partial[kSlots][kRows][kOutputs];
  float sum[kRows][kOutputs];
  int list[kChunk];  // columns, or -1
};

// The chunk's columns from `first` on, of `length`.
template <class T, int kRows>
DEVICE void list_chunk(const LinearCall& call, Stream<T, kRows>& shared, int edit, int first, int length, int padded) {
  int column[kChunkOfThread];  // all asked for before the first is waited for
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    column[i] = e >= length ? -1 : column_of(call, edit, first + e);
  }
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    if (e < padded) shared.list[e] = column[i];
  }
}

// The sequence's inputs at the chunk's columns.
template <class T, int kRows>
DEVICE void gather_chunk(const LinearCall& call, Stream<T, kRows>& shared, int sequence, int padded) {
  Inputs<kRows> inputs[kChunkOfThread];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const T* x = static_cast<const T*>(call.x) + sequence * call.x_batch + r * call.x_token;
#pragma unroll
    for (int i = 0; i < kChunkOfThread; ++i) {
      const int e = threadIdx.x + i * kLinearThreads;
      const int column = e < padded && r < call.tokens ? shared.list[e] : -1;
      inputs[i].of[r] = column >= 0 ? to_float(x[column * call.x_input]) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    if (e < padded) shared.inputs[e] = inputs[i];
  }
}

// A cluster for every kOutputs outputs of every sequence; its blocks share the active columns. The clusters of one tile of
// outputs follow one another, so that rows of memory that several sequences read come from the second-level cache.
template <class T, int kRows>
GLOBAL LAUNCH_BOUNDS(kLinearThreads, 2) void stream_rows(const LinearCall call) {
#if HAS_CLUSTERS
  using S = Stream<T, kRows>;
  auto& shared = *reinterpret_cast<S*>(dynamic_shared());
  const int rank = blockIdx.x % call.splits, cluster = blockIdx.x / call.splits;
  const int sequence = cluster % call.turns, tile = cluster / call.turns;
  const int piece = threadIdx.x % S::kPieces, slot = threadIdx.x / S::kPieces;
  const bool inside = tile * S::kOutputs + piece * S::kValues < call.outputs;
  const auto* memory = static_cast<const uint4*>(call.memory) + tile * S::kPieces + piece;
  wait_for_predecessors();
  admit_successor();

  clear_unrouted<T, S::kOutputs>(call, tile, sequence * call.splits + rank);
  const int edit = route_of(call, sequence);
  if (edit < 0) return;  // as do all blocks of the cluster
  const int share = (call.k + call.splits - 1) / call.splits;
  const int begin = rank * share, end = begin + share < call.k ? begin + share : call.k;

  float sum[kRows][S::kValues] = {};
#pragma unroll 1
  for (int first = begin; first < end; first += kChunk) {
    const int used = end - first < kChunk ? end - first : kChunk;
    const int padded = static_cast<int>(round_up(used, S::kSlots * S::kAhead));
    block_barrier();  // everybody has left the chunk before
    list_chunk(call, shared, edit, first, used, padded);
    block_barrier();
    uint4 ahead[S::kAhead];
    const auto fetch = [&](int e) {
#pragma unroll
      for (int u = 0; u < S::kAhead; ++u) {
        const int column = shared.list[e + u * S::kSlots];
        ahead[u] = column >= 0 && inside ? load_streaming(memory + column * call.memory_row) : uint4{};
      }
    };
    fetch(slot);
    gather_chunk(call, shared, sequence, padded);
    block_barrier();
#pragma unroll 1
    for (int e = slot; e < padded; e += S::kSlots * S::kAhead) {
      uint4 now[S::kAhead];
#pragma unroll
      for (int u = 0; u < S::kAhead; ++u) now[u] = ahead[u];
      if (e + S::kSlots * S::kAhead < padded) fetch(e + S::kSlots * S::kAhead);
#pragma unroll
      for (int u = 0; u < S::kAhead; ++u) {
        const Inputs<kRows> inputs = shared.inputs[e + u * S::kSlots];
        float weight[S::kValues];
        unpack(now[u], weight, T{});
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < S::kValues; ++i) sum[r][i] += inputs.of[r] * weight[i];
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < S::kValues; i += 4) {
      *reinterpret_cast<float4*>(&shared.partial[slot][r][piece * S::kValues + i]) =
          float4{sum[r][i], sum[r][i + 1], sum[r][i + 2], sum[r][i + 3]};
    }
  }
  block_barrier();
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * S::kOutputs; i += kLinearThreads) {
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < S::kSlots; ++s) total += (&shared.partial[s][0][0])[i];
    (&shared.sum[0][0])[i] = total;
  }
  add_up_cluster<T, S::kOutputs>(call, tile, rank, &shared.sum[0][0], call.tokens, S::kOutputs,
                                 [&](int r) { return sequence * call.tokens + r; });
#endif
}

}  // namespace memoir
