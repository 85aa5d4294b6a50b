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

// The chunk's columns from `first` on, of `length`; a dense pass takes every column. `own` are the thread's, every
// kLinearThreads-th. Returns the edit's page. Starts with a barrier: everybody has left the chunk before.
template <class T, int kRows>
DEVICE int list_chunk(const LinearCall& call, Stream<T, kRows>& shared, int edit, bool dense, int first, int length,
                      int (&own)[kChunkOfThread]) {
  int page = 0;
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) own[i] = first + static_cast<int>(threadIdx.x) + i * kLinearThreads;
  if (!dense) {
#pragma unroll
    for (int i = 0; i < kChunkOfThread; ++i) own[i] = listed(call, edit, own[i] < call.k ? own[i] : 0);
  }
  block_barrier();  // in front of the page, which the compiler would look at before it asks for all columns
  if (!dense) page = page_of(call, listed(call, edit, 0));
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    const int e = static_cast<int>(threadIdx.x) + i * kLinearThreads;
    own[i] = e < length ? column_of(call, page, own[i]) : -1;
    shared.list[e] = own[i];
  }
  return page;
}

// The members' inputs at a thread's columns; any input at those that are none, and for the other tokens.
template <class T, int kRows>
DEVICE void ask_inputs(const LinearCall& call, unsigned int members, const int (&own)[kChunkOfThread],
                       T (&input)[kRows][kChunkOfThread]) {
  int64_t offset[kChunkOfThread];
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) offset[i] = (own[i] < 0 ? 0 : own[i]) * call.x_input;
  const T* x = static_cast<const T*>(call.x);
  int token = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const T* from = (members >> r & 1) != 0 ? x : static_cast<const T*>(call.x);
#pragma unroll
    for (int i = 0; i < kChunkOfThread; ++i) input[r][i] = from[offset[i]];
    const bool last = ++token == call.tokens;
    x += last ? call.x_batch - (call.tokens - 1) * call.x_token : call.x_token;
    token = last ? 0 : token;
  }
}

// Zeros at columns that are none, and for tokens that are no members.
template <class T, int kRows>
DEVICE void put_inputs(Stream<T, kRows>& shared, unsigned int members, const int (&own)[kChunkOfThread],
                       const T (&input)[kRows][kChunkOfThread]) {
#pragma unroll
  for (int i = 0; i < kChunkOfThread; ++i) {
    Inputs<kRows> inputs;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool takes_part = own[i] >= 0 && (members >> r & 1) != 0;
      inputs.of[r] = takes_part ? to_float(input[r][i]) : 0.0f;
    }
    shared.inputs[threadIdx.x + i * kLinearThreads] = inputs;
  }
}

// A dense pass's inputs: each token's at its edit's columns, among zeros.
template <class T, int kRows>
DEVICE void put_active(const LinearCall& call, Stream<T, kRows>& shared, unsigned int members, int first, int length) {
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    if ((members >> r & 1) == 0) continue;
    gather_within(call, shared.edit[r], row_of_x<T>(call, r), first, length,
                  [&](int place, T input) { shared.inputs[place].of[r] = to_float(input); });
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
  clear_unrouted<T>(call, tile, rank, [&](int row) { return shared.edit[row]; });
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
    float sum[kRows][S::kValues] = {};
#pragma unroll 1
    for (int first = begin; first < end; first += kChunk) {
      const int used = end - first < kChunk ? end - first : kChunk;
      const int padded = static_cast<int>(round_up(used, S::kSlots * S::kAhead));
      int column[kChunkOfThread];
      T input[kRows][kChunkOfThread];
      const int page = list_chunk(call, shared, shared.edit[leader], dense, first, used, column);
      ask_inputs(call, members, column, input);  // in a dense pass for nothing: a branch would have them waited for here
      const uint4* own = memory + static_cast<int64_t>(page) * call.memory_row;
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
      put_inputs(shared, dense ? 0 : members, column, input);
      block_barrier();
      if (dense) {
        put_active(call, shared, members, first, used);
        block_barrier();
      }
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
