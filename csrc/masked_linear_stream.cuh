// The residual product of up to eight tokens: rows of memory stream through registers, products and sums in float32.
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
  static constexpr int kPieces = kTileOutputs / kValues;       // threads that read one row of memory together
  static constexpr int kSlots = kLinearThreads / kPieces;      // rows of memory that a block reads at a time
  static constexpr int kAhead = 4;                             // loads in flight per thread, beside those in use
  static_assert(kChunk % (kSlots * kAhead) == 0);

  Inputs<kRows> inputs[kChunk];
  float partial[kSlots][kRows][kTileOutputs];
  float sum[kRows][kTileOutputs];
  int list[kChunk];  // columns, or -1
  int edit[kRows];
};

// The chunk's columns from `first` on, of `length`; a dense pass takes every column.
template <class T, int kRows>
DEVICE void list_chunk(const LinearCall& call, Stream<T, kRows>& shared, int edit, int page, bool dense, int first,
                       int length, int padded) {
  int column[kChunkOfThread];  // all asked for before the first is waited for
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    column[i] = e >= length ? -1 : dense ? first + e : column_of(call, edit, page, first + e);
  }
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    if (e < padded) shared.list[e] = column[i];
  }
}

// The inputs at the chunk's columns; 0 for a token that does not take part, and in a dense pass at inactive columns.
template <class T, int kRows>
DEVICE void gather_chunk(const LinearCall& call, Stream<T, kRows>& shared, unsigned int members, bool dense, int first,
                         int length, int padded) {
  Inputs<kRows> inputs[kChunkOfThread];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const T* x = row_of_x<T>(call, r);
#pragma unroll
    for (int i = 0; i < kChunkOfThread; ++i) {
      const int e = threadIdx.x + i * kLinearThreads;
      const int column = e < padded ? shared.list[e] : -1;
      const bool takes_part = !dense && column >= 0 && (members >> r & 1) != 0;
      inputs[i].of[r] = takes_part ? to_float(x[column * call.x_input]) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = threadIdx.x + i * kLinearThreads;
    if (e < padded) shared.inputs[e] = inputs[i];
  }
  if (!dense) return;
  block_barrier();
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    if ((members >> r & 1) == 0) continue;
    const T* x = row_of_x<T>(call, r);
#pragma unroll 1
    for (int i = threadIdx.x; i < call.k; i += kLinearThreads) {
      const int column = column_of(call, shared.edit[r], 0, i), e = column - first;
      if (column >= 0 && e >= 0 && e < length) shared.inputs[e].of[r] = to_float(x[column * call.x_input]);
    }
  }
}

// A cluster for every kTileOutputs outputs; its blocks share the active columns. Tokens of one route share each row that
// is read. Where all routes' rows together are more than memory has, one dense pass reads every row once.
template <class T, int kRows>
GLOBAL LAUNCH_BOUNDS(kLinearThreads, 2) void stream_rows(const LinearCall call) {
#if HAS_CLUSTERS
  using S = Stream<T, kRows>;
  auto& shared = *reinterpret_cast<S*>(dynamic_shared());
  const int rank = blockIdx.x % call.splits, tile = blockIdx.x / call.splits;
  const int piece = threadIdx.x % S::kPieces, slot = threadIdx.x / S::kPieces;
  const bool inside = tile * kTileOutputs + piece * S::kValues < call.outputs;
  const auto* memory = static_cast<const uint4*>(call.memory) + tile * S::kPieces + piece;
  wait_for_predecessors();
  admit_successor();

  if (threadIdx.x < kRows) {
    const int row = threadIdx.x;
    shared.edit[row] = row < call.batch * call.tokens ? route_of(call, row / call.tokens) : -1;
  }
  block_barrier();
  unsigned int routed = 0, leaders = 0;  // rows with a route; the first row of each route
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    bool leads = shared.edit[r] >= 0;
    routed |= static_cast<unsigned int>(leads) << r;
#pragma unroll
    for (int before = 0; before < r; ++before) leads = leads && shared.edit[before] != shared.edit[r];
    leaders |= static_cast<unsigned int>(leads) << r;
  }
  clear_unrouted<T>(call, tile, rank);
  const int routes = count_bits(leaders);
  const bool dense = kRows > 1 && routes > 1 && one_page(call) && static_cast<int64_t>(routes) * call.k >= call.width;
  const int length = dense ? call.width : call.k;
  const int share = (length + call.splits - 1) / call.splits;
  const int begin = rank * share, end = begin + share < length ? begin + share : length;

#pragma unroll 1
  for (int leader = 0; leader < kRows; ++leader) {
    if ((leaders >> leader & 1) == 0) continue;
    unsigned int members = routed;
    if (!dense) {
      members = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        members |= static_cast<unsigned int>(shared.edit[r] == shared.edit[leader]) << r;
      }
    }
    const int page = page_of(call, shared.edit[leader]);
    const uint4* own = memory + static_cast<int64_t>(page) * call.memory_row;
    float sum[kRows][S::kValues] = {};
#pragma unroll 1
    for (int first = begin; first < end; first += kChunk) {
      const int used = end - first < kChunk ? end - first : kChunk;
      const int padded = static_cast<int>(round_up(used, S::kSlots * S::kAhead));
      block_barrier();  // everybody has left the chunk before
      list_chunk(call, shared, shared.edit[leader], page, dense, first, used, padded);
      block_barrier();
      uint4 ahead[S::kAhead];
      const auto fetch = [&](int e) {
#pragma unroll
        for (int u = 0; u < S::kAhead; ++u) {
          const int column = shared.list[e + u * S::kSlots];
          ahead[u] = column >= 0 && inside ? load_streaming(own + column * call.memory_row) : uint4{};
        }
      };
      fetch(slot);
      gather_chunk(call, shared, members, dense, first, used, padded);
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
    for (int i = threadIdx.x; i < kRows * kTileOutputs; i += kLinearThreads) {
      float total = 0.0f;
#pragma unroll
      for (int s = 0; s < S::kSlots; ++s) total += (&shared.partial[s][0][0])[i];
      (&shared.sum[0][0])[i] = total;
    }
    add_up_cluster<T>(call, tile, rank, &shared.sum[0][0], kRows, kTileOutputs,
                      [&](int r) { return (members >> r & 1) != 0 ? r : -1; });
    if (dense) break;
  }
#endif
}

}  // namespace memoir
