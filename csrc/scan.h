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

  int32_t* overlap;  // [queries, rows]; of a match [queries]

  // Of a match only.
  const int32_t* count;        // rows to look at, on the device
  int32_t* edit;               // [queries]
  const int32_t* min_overlap;  // [rows], each row's threshold; below 1 counts as 1
  int64_t min_overlap_stride;
  unsigned long long* best;  // [queries], zero at the scan: see match_key
  unsigned int* finished;    // [query_tiles], zero at the scan: blocks that have reported; right behind `best`

  int64_t scratch_words() const { return queries + (query_tiles + 1) / 2; }  // 64 bits each, `best` and `finished`
};

}  // namespace memoir
