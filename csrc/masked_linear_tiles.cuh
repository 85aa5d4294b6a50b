// The residual product of more tokens, two-byte types: inputs are packed once, then tiles of tokens meet the streamed rows of
// memory on the tensor cores.
#pragma once

#include "masked_linear_common.cuh"

namespace memoir {

constexpr int kWarp32 = 32;
constexpr int kPackedByBlock = 2048;  // positions of one row that a block of pack_inputs fills

// The batch's sequences by route: what a block has to know to serve each route once.
struct RoutePlan {
  int edit[kMostSequences];
  int rank[kMostSequences];         // sequences of the same route before this one
  int size[kMostSequences];         // sequences of the same route
  int routed_rank[kMostSequences];  // sequences with a route before this one
  int tiles[kLinearThreads / kWarp32], routed[kLinearThreads / kWarp32];
};

static_assert(kMostSequences <= kLinearThreads, "a thread a sequence's route");

// Fills the plan's edits.
DEVICE void list_routes(const LinearCall& call, RoutePlan& plan) {
  if (static_cast<int>(threadIdx.x) < call.batch) plan.edit[threadIdx.x] = route_of(call, threadIdx.x);
  block_barrier();
}

// Fills the rest of it, and says whether one dense pass over all rows of memory is cheaper than one pass per route.
DEVICE bool plan_routes(const LinearCall& call, RoutePlan& plan, int& routed) {
  int tiles = 0, own_routed = 0;
  for (int b = threadIdx.x; b < call.batch; b += kLinearThreads) {
    const int edit = plan.edit[b];
    int rank = 0, size = 0, routed_rank = 0;
#pragma unroll 4
    for (int other = 0; other < call.batch; ++other) {
      const int its = plan.edit[other];
      size += its == edit;
      rank += its == edit && other < b;
      routed_rank += its >= 0 && other < b;
    }
    plan.rank[b] = rank, plan.size[b] = size, plan.routed_rank[b] = routed_rank;
    if (edit >= 0) {
      own_routed += 1;
      tiles += rank == 0 ? (size * call.tokens + call.tile_rows - 1) / call.tile_rows : 0;
    }
  }
  for (int apart = kWarp32 / 2; apart > 0; apart /= 2) {
    tiles += from_lane(tiles, apart);
    own_routed += from_lane(own_routed, apart);
  }
  if (threadIdx.x % kWarp32 == 0) {
    plan.tiles[threadIdx.x / kWarp32] = tiles;
    plan.routed[threadIdx.x / kWarp32] = own_routed;
  }
  block_barrier();
  tiles = routed = 0;
#pragma unroll
  for (int w = 0; w < kLinearThreads / kWarp32; ++w) tiles += plan.tiles[w], routed += plan.routed[w];
  const int64_t dense_tiles = (static_cast<int64_t>(routed) * call.tokens + call.tile_rows - 1) / call.tile_rows;
  return tiles > dense_tiles && one_page(call) && dense_tiles * call.width <= static_cast<int64_t>(tiles) * call.k;
}

struct Pack {
  RoutePlan plan;
  alignas(16) uint16_t values[kPackedByBlock];
};

// Block (row, part): a part of one token's inputs, side by side in the order of its columns; before a dense pass at their
// own places, among zeros. Filled up with zeros to a multiple of kDepth. The values are copied as bits.
GLOBAL LAUNCH_BOUNDS(kLinearThreads, 2) void pack_inputs(const LinearCall call, int parts) {
#if HAS_CLUSTERS
  auto& shared = *reinterpret_cast<Pack*>(dynamic_shared());
  const int row = blockIdx.x / parts, first = blockIdx.x % parts * kPackedByBlock;
  wait_for_predecessors();
  admit_successor();  // only now: who starts may read what was written before this kernel
  list_routes(call, shared.plan);
  const int edit = shared.plan.edit[row / call.tokens];
  if (edit < 0) return;
  int routed = 0;
  const bool dense = call.batch > 1 && plan_routes(call, shared.plan, routed);
  const int length = dense ? call.width : call.k;
  const int left = static_cast<int>(round_up(length, kDepth)) - first;
  if (left <= 0) return;
  const int used = left < kPackedByBlock ? left : kPackedByBlock;
  const auto* x = row_of_x<uint16_t>(call, row);
  if (!dense) {
    constexpr int kOfThread = kPackedByBlock / kLinearThreads;
    int column[kOfThread];
    uint16_t value[kOfThread];
#pragma unroll
    for (int u = 0; u < kOfThread; ++u) {
      const int at = first + static_cast<int>(threadIdx.x) + u * kLinearThreads;
      column[u] = listed(call, edit, at < length ? at : 0);
    }
    block_barrier();  // else the compiler has the page computed before it asks for the last columns
    const int page = page_of(call, listed(call, edit, 0));
#pragma unroll
    for (int u = 0; u < kOfThread; ++u) {
      const int at = first + static_cast<int>(threadIdx.x) + u * kLinearThreads;
      column[u] = at < length ? column_of(call, page, column[u]) : -1;
      value[u] = x[(column[u] < 0 ? 0 : column[u]) * call.x_input];
    }
#pragma unroll
    for (int u = 0; u < kOfThread; ++u) {
      shared.values[threadIdx.x + u * kLinearThreads] = column[u] < 0 ? static_cast<uint16_t>(0) : value[u];
    }
  } else {
    for (int i = threadIdx.x; i < used; i += kLinearThreads) shared.values[i] = 0;
    block_barrier();
    gather_within(call, edit, x, first, used < length - first ? used : length - first,
                  [&](int place, uint16_t value) { shared.values[place] = value; });
  }
  block_barrier();
  auto* to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(call.packed) + row * call.packed_row + first);
  const auto* from = reinterpret_cast<const uint4*>(shared.values);
  for (int i = threadIdx.x; i < used / 8; i += kLinearThreads) to[i] = from[i];
#endif
}

// Eight warps over a tile of kRows x kTileOutputs.
template <class T, int kTileRows>
struct Tile {
  static constexpr int kRows = kTileRows;
  static constexpr int kWarpsOfRows = kRows >= 64 ? 2 : 1;
  static constexpr int kWarpsOfOutputs = kLinearThreads / kWarp32 / kWarpsOfRows;
  static constexpr int kTilesOfRows = kRows / 16 / kWarpsOfRows;                // of 16 rows, per warp
  static constexpr int kTilesOfOutputs = kTileOutputs / 8 / kWarpsOfOutputs;    // of 8 outputs, per warp
  static constexpr int kStages = 4;
  static constexpr int kOutputPieces = kTileOutputs / 8;  // 16 bytes each
  static constexpr int kDepthPieces = kDepth / 8;
  static constexpr int kPitch = kTileOutputs + 8;  // floats from row to row of the sums: eight banks apart

  union {
    struct {
      uint4 memory[kDepth * kOutputPieces];
      uint4 inputs[kRows * kDepthPieces];
    } stage[kStages];
    float sum[kRows * kPitch];
  };
  RoutePlan plan;
  int member[kMostSequences];  // the route's sequences
  // Behind it: the block's share of the rows of memory, or -1.
  DEVICE int* list() { return reinterpret_cast<int*>(this + 1); }
};

// Where a piece lies in a stage, so that eight rows' pieces of one number fall into different banks.
DEVICE int place_of_memory(int row, int piece) { return row * (kTileOutputs / 8) + (piece ^ row % 8); }
DEVICE int place_of_input(int row, int piece) { return row * (kDepth / 8) + (piece ^ row / 2 % 4); }

template <class T, int kTileRows>
DEVICE void copy_memory(const LinearCall& call, Tile<T, kTileRows>& shared, int stage, int tile, int first, int used) {
  using S = Tile<T, kTileRows>;
  constexpr int kRowsAtOnce = kLinearThreads / S::kOutputPieces;
  const int piece = threadIdx.x % S::kOutputPieces;
  const auto* memory = static_cast<const uint4*>(call.memory);
  const bool inside = tile * kTileOutputs + piece * 8 < call.outputs;
#pragma unroll
  for (int i = 0; i < kDepth; i += kRowsAtOnce) {
    const int row = threadIdx.x / S::kOutputPieces + i;
    const int at = first + row < used ? shared.list()[first + row] : -1;
    const bool whole = inside && at >= 0;
    const uint4* from = whole ? memory + at * call.memory_row + tile * S::kOutputPieces + piece : memory;
    copy_async(shared.stage[stage].memory + place_of_memory(row, piece), from, whole);
  }
}

template <class T, int kTileRows>
DEVICE void copy_inputs(const LinearCall& call, Tile<T, kTileRows>& shared, int stage, int at, int first_row, int rows) {
  using S = Tile<T, kTileRows>;
  if (static_cast<int>(threadIdx.x) >= S::kRows * S::kDepthPieces) return;
  const int row = threadIdx.x / S::kDepthPieces, piece = threadIdx.x % S::kDepthPieces;
  const bool inside = first_row + row < rows;
  const auto* packed = static_cast<const uint16_t*>(call.packed);
  if (inside) {
    const int token = first_row + row;
    const int64_t own = static_cast<int64_t>(shared.member[token / call.tokens]) * call.tokens + token % call.tokens;
    packed += own * call.packed_row + at + piece * 8;
  }
  copy_async(shared.stage[stage].inputs + place_of_input(row, piece), reinterpret_cast<const uint4*>(packed), inside);
}

template <class T, int kTileRows>
DEVICE void multiply_stage(const Tile<T, kTileRows>& shared, int stage, int warp_of_rows, int warp_of_outputs, int lane,
                           float (&sum)[Tile<T, kTileRows>::kTilesOfRows][Tile<T, kTileRows>::kTilesOfOutputs][4]) {
  using S = Tile<T, kTileRows>;
#pragma unroll
  for (int half = 0; half < kDepth / 16; ++half) {
    unsigned int a[S::kTilesOfRows][4];
#pragma unroll
    for (int m = 0; m < S::kTilesOfRows; ++m) {
      const int row = (warp_of_rows * S::kTilesOfRows + m) * 16 + lane % 16;
      load_fragments(a[m], shared.stage[stage].inputs + place_of_input(row, half * 2 + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < S::kTilesOfOutputs; n += 2) {
      unsigned int b[4];
      const int row = half * 16 + lane % 16, piece = warp_of_outputs * S::kTilesOfOutputs + n + lane / 16;
      load_fragments_transposed(b, shared.stage[stage].memory + place_of_memory(row, piece));
#pragma unroll
      for (int m = 0; m < S::kTilesOfRows; ++m) {
        multiply_halves<T>(sum[m][n], a[m], b[0], b[1]);
        multiply_halves<T>(sum[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// A cluster for every kTileOutputs outputs; its blocks share the active columns, and walk over the routes and their rows,
// kRows at a time. It is launched behind pack_inputs, which lets it start early: routes, columns and memory were complete
// before that kernel, so they are read at once, and the packed inputs after the wait.
template <class T, int kTileRows>
GLOBAL LAUNCH_BOUNDS(kLinearThreads, 2) void multiply_tiles(const LinearCall call) {
#if HAS_CLUSTERS
  using S = Tile<T, kTileRows>;
  auto& shared = *reinterpret_cast<S*>(dynamic_shared());
  const int rank = blockIdx.x % call.splits, tile = blockIdx.x / call.splits;
  const int warp = threadIdx.x / kWarp32, lane = threadIdx.x % kWarp32;
  const int warp_of_rows = warp / S::kWarpsOfOutputs, warp_of_outputs = warp % S::kWarpsOfOutputs;
  int routed = 0;
  list_routes(call, shared.plan);
  const bool dense = plan_routes(call, shared.plan, routed);
  const int length = dense ? call.width : call.k;
  const int share = static_cast<int>(round_up((length + call.splits - 1) / call.splits, kDepth));
  const int begin = rank * share, end = begin + share < length ? begin + share : length;
  const int used = end > begin ? end - begin : 0, steps = (used + kDepth - 1) / kDepth;
  bool waited = false;

#pragma unroll 1
  for (int leader = 0; leader < call.batch; ++leader) {
    const int edit = shared.plan.edit[leader];
    if (edit < 0 || (dense ? shared.plan.routed_rank[leader] : shared.plan.rank[leader]) != 0) continue;
    const int rows = (dense ? routed : shared.plan.size[leader]) * call.tokens;
    block_barrier();  // everybody has left the route before
    for (int b = threadIdx.x; b < call.batch; b += kLinearThreads) {
      const int its = shared.plan.edit[b];
      if (dense ? its >= 0 : its == edit) shared.member[dense ? shared.plan.routed_rank[b] : shared.plan.rank[b]] = b;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < used; i += kAtOnce * kLinearThreads) {
      int page = 0, row[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) row[u] = begin + i + u * kLinearThreads;
      if (!dense) {
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) row[u] = listed(call, edit, row[u] < call.k ? row[u] : 0);
        page = page_of(call, listed(call, edit, 0));
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const bool on_page = column_of(call, page, row[u]) >= 0;
        if (i + u * kLinearThreads < used) shared.list()[i + u * kLinearThreads] = on_page ? row[u] : -1;
      }
    }
    block_barrier();

#pragma unroll 1
    for (int first_row = 0; first_row < rows; first_row += S::kRows) {
      float sum[S::kTilesOfRows][S::kTilesOfOutputs][4] = {};
      for (int step = 0; step < S::kStages - 1; ++step) {
        if (step < steps) copy_memory(call, shared, step, tile, step * kDepth, used);
      }
      if (!waited) wait_for_predecessors();
      waited = true;
      for (int step = 0; step < S::kStages - 1; ++step) {
        if (step < steps) copy_inputs(call, shared, step, begin + step * kDepth, first_row, rows);
        commit_copies();
      }
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        wait_for_copies<S::kStages - 2>();
        block_barrier();  // the stage of this step is complete, and everybody has left that of the step before
        const int ahead = step + S::kStages - 1;
        if (ahead < steps) {
          copy_memory(call, shared, ahead % S::kStages, tile, ahead * kDepth, used);
          copy_inputs(call, shared, ahead % S::kStages, begin + ahead * kDepth, first_row, rows);
        }
        commit_copies();
        multiply_stage(shared, step % S::kStages, warp_of_rows, warp_of_outputs, lane, sum);
      }
      wait_for_copies<0>();
      block_barrier();  // the sums take the stages' place

      // A thread holds, of each 16 x 8 product, rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the one after.
#pragma unroll
      for (int m = 0; m < S::kTilesOfRows; ++m) {
#pragma unroll
        for (int n = 0; n < S::kTilesOfOutputs; ++n) {
          const int row = (warp_of_rows * S::kTilesOfRows + m) * 16 + lane / 4;
          const int output = (warp_of_outputs * S::kTilesOfOutputs + n) * 8 + lane % 4 * 2;
          float* at = shared.sum + row * S::kPitch + output;
          *reinterpret_cast<float2*>(at) = float2{sum[m][n][0], sum[m][n][1]};
          *reinterpret_cast<float2*>(at + 8 * S::kPitch) = float2{sum[m][n][2], sum[m][n][3]};
        }
      }
      const int filled = rows - first_row < S::kRows ? rows - first_row : S::kRows;
      add_up_cluster<T>(call, tile, rank, shared.sum, filled, S::kPitch, [&](int r) {
        const int token = first_row + r;
        return shared.member[token / call.tokens] * call.tokens + token % call.tokens;
      });
    }
    if (dense) break;
  }
  if (!waited) wait_for_predecessors();  // every thread waits: this kernel's end implies that of those before
  admit_successor();
  clear_unrouted<T>(call, tile, rank, [&](int row) { return shared.plan.edit[row / call.tokens]; });
#endif
}

}  // namespace memoir
