// popcount(query AND row) for queries and rows of a store: the arithmetic of every search.
#pragma once

#include <cstdint>
#include <string>

namespace memoir {

// Packed masks: `rows` rows of `words` int32 (a multiple of 4), `stride` words from row to row. Any alignment.
struct Masks {
  const int32_t* data;
  int64_t rows;
  int64_t stride;
  int64_t words;

  Masks slice(int64_t begin, int64_t count) const { return {data + begin * stride, count, stride, words}; }
};

// Queries that pass over the rows together: they stay in the second-level cache.
constexpr int64_t kQueriesAtOnce = 64;

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

// The best of store rows [begin, end): raises best[q] to the key of the best of these rows. `store` has the rows of the
// whole search, which tell whether it lies in a cache.
void mask_match_rows(const Masks& query, const Masks& store, const Thresholds& least, int64_t begin, int64_t end,
                     uint64_t* best);

// One query goes over the store in one of a few ways, with one result; the first searches of a process tell the quickest
// (trial.h). This lets every such search go the way of this name, until another is named; "" ends that.
// Throws std::invalid_argument where this CPU has no way of that name.
void force_scan(const std::string& way);

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
