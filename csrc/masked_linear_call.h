// The arguments of the residual product's GPU kernels, for the code that launches them too.
#pragma once

#include <cstdint>

namespace memoir {

// One call. Strides count elements, but that of a row of memory: 16-byte pieces. Rows of memory start on 16-byte
// boundaries, and their values lie side by side.
struct LinearCall {
  const void* x;
  const void* memory;
  const int32_t* columns;
  const int32_t* route;
  void* out;  // [B, S, O]: written, or added to
  int64_t x_batch, x_token, x_input;
  int64_t memory_row;
  int64_t columns_row, columns_step, route_step;
  int64_t out_batch, out_token, out_output;
  int batch, tokens, width, outputs, k, edits;
  int rows;    // of memory: pages of `width` rows
  int splits;  // blocks of a cluster: each adds up its share of the active columns
  int add;     // 1: out keeps what it holds for sequences without a route, and is added to for the others

  // Tiles of rows only.
  void* packed;        // [B * S, packed_row]: each token's inputs, side by side at its active columns
  int64_t packed_row;  // two-byte values, a multiple of kDepth
  int tile_rows;
};

constexpr int kLinearThreads = 256;
constexpr int kTileOutputs = 256;    // of one cluster
constexpr int kDepth = 32;           // columns of one step of a tile
constexpr int kMostSequences = 256;  // that a plan of routes holds

#ifdef __CUDACC__
__host__ __device__
#endif
constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace memoir
