// The arguments of the GPU kernels, for the code that launches them too.
#pragma once

#include <cstdint>

#ifdef MEMOIR_FAST_EMULATE
#include "emulate.h"
#else
#include <vector_types.h>
#endif

namespace memoir {

// One call. A piece is 16 bytes, the unit of every load; rows start on 16-byte boundaries.
struct Scan {
  const uint4* query;
  const uint4* store;
  int64_t query_stride, store_stride;  // pieces from row to row
  int queries, rows, pieces;           // pieces of a row
  int query_tiles;                     // blocks b with b % query_tiles == t share the queries of tile t

  int32_t* overlap;  // mask_overlap: [queries, rows]; mask_match: [queries]

  // mask_match only.
  const int32_t* count;        // rows to look at, on the device
  int32_t* edit;               // [queries]
  const int32_t* min_overlap;  // [rows], each row's threshold; below 1 counts as 1
  int64_t min_overlap_stride;
  // Zero before the scan and after it. Where `collect`, [blocks, queries of the tile]: every block's best keys; only for
  // one tile, and blocks that all can run at once. Else [queries], the best keys, and behind them unsigned [query_tiles],
  // blocks that have reported.
  unsigned long long* scratch;
  bool collect;
};

}  // namespace memoir
