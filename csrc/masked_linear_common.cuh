// What the residual product's kernels share: routes, columns, and the last step, the sum over a cluster's blocks.
#pragma once

#include "masked_linear_call.h"
#include "matrix.cuh"

namespace memoir {

// The edit that a sequence follows, or -1.
DEVICE int route_of(const LinearCall& call, int sequence) {
  const int edit = load_written(call.route + sequence * call.route_step);
  return edit >= 0 && edit < call.edits ? edit : -1;
}

// What an edit's list of rows of memory has at place `i`, which must be one of its k: any number at all. A load behind a
// branch waits for what the branch depends on: all that are wanted are asked for first, in places that exist, and then looked at.
DEVICE int listed(const LinearCall& call, int edit, int i) {
  return load_written(call.columns + edit * call.columns_row + i * call.columns_step);
}

// The first row of the page of memory that an edit lives on, which the first row of its list tells.
DEVICE int page_of(const LinearCall& call, int row) {
  const int own = row >= 0 && row < call.rows ? row : 0;
  return own - own % call.width;
}

// row - first where `row` is one of `length` rows from `first` on, else -1.
DEVICE int place_within(int row, int first, int length) {
  const unsigned int place = static_cast<unsigned int>(row) - static_cast<unsigned int>(first);
  return place < static_cast<unsigned int>(length) ? static_cast<int>(place) : -1;
}

// The column of a row of the page that begins at row `page`, or -1 where the number listed is no row of it.
DEVICE int column_of(const LinearCall& call, int page, int row) {
  return place_within(row, page, call.width);
}

// One dense pass serves several edits only where they live on the one page that there is.
DEVICE bool one_page(const LinearCall& call) { return call.rows == call.width; }

template <class T>
DEVICE const T* row_of_x(const LinearCall& call, int row) {
  return static_cast<const T*>(call.x) + row / call.tokens * call.x_batch + row % call.tokens * call.x_token;
}

constexpr int kAtOnce = 4;  // places of a list that a thread asks for together

// A dense pass's inputs: calls use(column - first, input) for each of an edit's columns among the `length` from `first` on.
template <class T, class Use>
DEVICE void gather_within(const LinearCall& call, int edit, const T* x, int first, int length, const Use& use) {
#pragma unroll 1
  for (int i = threadIdx.x; i < call.k; i += kAtOnce * kLinearThreads) {
    int place[kAtOnce];
    T input[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      place[u] = listed(call, edit, i + u * kLinearThreads < call.k ? i + u * kLinearThreads : i);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      place[u] = place_within(place[u], first, length);
      input[u] = x[(first + (place[u] < 0 ? 0 : place[u])) * call.x_input];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (place[u] >= 0) use(place[u], input[u]);
    }
  }
}

template <class T>
DEVICE T* row_of_out(const LinearCall& call, int row) {
  return static_cast<T*>(call.out) + row / call.tokens * call.out_batch + row % call.tokens * call.out_token;
}

// Zeros for the rows without a route, where out is written and not added to. The cluster's blocks take rows in turns.
// edit_at(row): the edit that a row follows, or -1.
template <class T, class EditAt>
DEVICE void clear_unrouted(const LinearCall& call, int tile, int rank, const EditAt& edit_at) {
  if (call.add) return;
#pragma unroll 1
  for (int row = rank; row < call.batch * call.tokens; row += call.splits) {
    if (edit_at(row) >= 0) continue;
#pragma unroll 1
    for (int o = tile * kTileOutputs + threadIdx.x; o < (tile + 1) * kTileOutputs && o < call.outputs;
         o += kLinearThreads) {
      row_of_out<T>(call, row)[o * call.out_output] = from_float<T>(0.0f);
    }
  }
}

// Adds up what the cluster's blocks hold, in their order, and writes it. `sum` lies at the same place of every block:
// `rows` rows of kTileOutputs, `pitch` floats apart; row_at(r) is the row of out, or -1. Each block takes its share.
template <class T, class RowAt>
DEVICE void add_up_cluster(const LinearCall& call, int tile, int rank, const float* sum, int rows, int pitch,
                           const RowAt& row_at) {
  constexpr int kQuads = kTileOutputs / 4, kTogether = 8;
  const int share = (rows * kQuads + call.splits - 1) / call.splits;
  const int end = (rank + 1) * share < rows * kQuads ? (rank + 1) * share : rows * kQuads;
  T next[4];
  // What out holds at four outputs, asked for one turn before it is used.
  const auto ask = [&](int i) {
    const int o = tile * kTileOutputs + i % kQuads * 4, row = i < end ? row_at(i / kQuads) : -1;
    const T* out = row_of_out<T>(call, row < 0 ? 0 : row);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      next[j] = T{};
      if (call.add && row >= 0 && o + j < call.outputs) next[j] = out[(o + j) * call.out_output];
    }
  };
  int i = rank * share + threadIdx.x;
  ask(i);
  cluster_barrier();
#pragma unroll 1
  for (; i < end; i += kLinearThreads) {
    const int o = tile * kTileOutputs + i % kQuads * 4, row = row_at(i / kQuads);
    const auto* own = reinterpret_cast<const float4*>(sum + i / kQuads * pitch + i % kQuads * 4);
    float held[4], added[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) held[j] = to_float(next[j]);
    ask(i + kLinearThreads);
#pragma unroll 1
    for (int from = 0; from < call.splits; from += kTogether) {
      float4 part[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) part[j] = from + j < call.splits ? load_from_block(own, from + j) : float4{};
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        added[0] += part[j].x, added[1] += part[j].y, added[2] += part[j].z, added[3] += part[j].w;
      }
    }
    if (row < 0) continue;
    T* out = row_of_out<T>(call, row);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (o + j < call.outputs) out[(o + j) * call.out_output] = from_float<T>(held[j] + added[j]);
    }
  }
  cluster_barrier();  // nobody writes over `sum`, or ends, while others read it
}

}  // namespace memoir
