// popcount(query AND row) for a block of queries and a block of store rows: the arithmetic of every search.
#pragma once

#include <cstdint>

namespace memoir {

// Packed masks: `rows` rows of `words` int32 (a multiple of 4), `stride` words from row to row. Any alignment.
struct Masks {
  const int32_t* data;
  int64_t rows;
  int64_t stride;
  int64_t words;

  Masks slice(int64_t begin, int64_t count) const { return {data + begin * stride, count, stride, words}; }
};

// overlap[q * overlap_stride + r] = bits that query q shares with row r.
using OverlapBlock = void (*)(const Masks& query, const Masks& store, int32_t* overlap, int64_t overlap_stride);

// The kernel of the CPU path in force.
OverlapBlock overlap_block();

// Rows and queries of one block: rows stay in the first-level cache while every query passes over them, so that memory
// is read once for a batch of queries.
constexpr int64_t kBlockRows = 16;
constexpr int64_t kBlockQueries = 32;

// Every overlap with store rows [begin, end): overlap is int32 [query.rows, store.rows], contiguous.
void mask_overlap_rows(const Masks& query, const Masks& store, int64_t begin, int64_t end, int32_t* overlap);

// Each row's threshold in bits; below 1 counts as 1, so that a row of zeros never matches.
struct Thresholds {
  const int32_t* data;
  int64_t stride;

  int32_t operator[](int64_t row) const {
    const int32_t least = data[row * stride];
    return least < 1 ? 1 : least;
  }
};

// The best of store rows [begin, end): raises best[q] to the key of the best of these rows.
void mask_match_rows(const Masks& query, const Masks& store, const Thresholds& least, int64_t begin, int64_t end,
                     uint64_t* best);

// A match as one number: a row that reaches its threshold wins, then more bits, then the lower row. 0: no row at all.
constexpr uint64_t kReached = 1ull << 63;
inline uint64_t match_key(int32_t overlap, int32_t least, int64_t row) {
  const uint64_t reached = overlap >= least ? kReached : 0;
  return reached | static_cast<uint64_t>(overlap) << 32 | (0xffffffffu - static_cast<uint32_t>(row));
}
inline int32_t overlap_of(uint64_t key) { return static_cast<int32_t>((key & ~kReached) >> 32); }
inline int32_t edit_of(uint64_t key) {
  return key >= kReached ? static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)) : -1;
}

}  // namespace memoir
