#include "overlap_cpu.h"

#include <algorithm>
#include <cstring>

#include "cpu_path.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace memoir {
namespace portable {
namespace {

// 64 bits at a time: counts bits by adding neighbouring fields of 1, 2 and 4 bits, then the bytes.
struct Bits {
  using Word = uint64_t;
  using Sum = uint64_t;
  static constexpr int kWords = 2, kTileRows = 2, kTileQueries = 2, kAhead = 4096;

  static Sum zero() { return 0; }
  static Word load(const int32_t* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
  }
  static Word load_part(const int32_t* from, int64_t) { return load(from); }  // never needed: W is a multiple of 4
  static Word both(Word a, Word b) { return a & b; }
  static Sum plus(Sum a, Sum b) { return a + b; }
  static Sum add(Sum sum, Word bits) {
    bits -= bits >> 1 & 0x5555555555555555u;
    bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return sum + (bits * 0x0101010101010101u >> 56);
  }
  static int32_t total(Sum sum) { return static_cast<int32_t>(sum); }
};

#include "overlap_tiles.inc"

}  // namespace
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
namespace {

// 256 bits at a time: a table of 16 counts, looked up for both halves of every byte.
struct Bits {
  using Word = __m256i;
  using Sum = __m256i;  // four 64-bit counts
  static constexpr int kWords = 8, kTileRows = 2, kTileQueries = 2, kAhead = 8192;

  static inline Sum zero() { return _mm256_setzero_si256(); }
  static inline Word load(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static inline Word load_part(const int32_t* from, int64_t) {  // four words: W is a multiple of 4
    return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static inline Word both(Word a, Word b) { return _mm256_and_si256(a, b); }
  static inline Sum plus(Sum a, Sum b) { return _mm256_add_epi64(a, b); }
  static inline Sum add(Sum sum, Word bits) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(bits, nibble));
    const __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble));
    return _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256()));
  }
  static inline int32_t total(Sum sum) {
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return static_cast<int32_t>(_mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1));
  }
};

#include "overlap_tiles.inc"

}  // namespace
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vpopcntdq")
namespace avx512 {
namespace {

// 512 bits at a time: VPOPCNTQ.
struct Bits {
  using Word = __m512i;
  using Sum = __m512i;  // eight 64-bit counts
  static constexpr int kWords = 16, kTileRows = 4, kTileQueries = 4, kAhead = 8192;

  static inline Sum zero() { return _mm512_setzero_si512(); }
  static inline Word load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static inline Word load_part(const int32_t* from, int64_t left) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << left) - 1), from);
  }
  static inline Word both(Word a, Word b) { return _mm512_and_si512(a, b); }
  static inline Sum plus(Sum a, Sum b) { return _mm512_add_epi64(a, b); }
  static inline Sum add(Sum sum, Word bits) { return _mm512_add_epi64(sum, _mm512_popcnt_epi64(bits)); }
  static inline int32_t total(Sum sum) { return static_cast<int32_t>(_mm512_reduce_add_epi64(sum)); }
};

#include "overlap_tiles.inc"

}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

OverlapBlock overlap_block() { return OF_CPU_PATH(block); }

void mask_overlap_rows(const Masks& query, const Masks& store, int64_t begin, int64_t end, int32_t* overlap) {
  const OverlapBlock block = overlap_block();
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const Masks rows = store.slice(row, std::min(kBlockRows, end - row));
    block(query, rows, overlap + row, store.rows);
  }
}

void mask_match_rows(const Masks& query, const Masks& store, const Thresholds& least, int64_t begin, int64_t end,
                     uint64_t* best) {
  if (query.rows == 1) {
    best[0] = OF_CPU_PATH(scan)(query, store.slice(begin, end - begin), least, begin, best[0]);
    return;
  }
  const OverlapBlock block = overlap_block();
  int32_t overlap[kBlockQueries * kBlockRows];
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const Masks rows = store.slice(row, std::min(kBlockRows, end - row));
    for (int64_t first = 0; first < query.rows; first += kBlockQueries) {
      const Masks queries = query.slice(first, std::min(kBlockQueries, query.rows - first));
      block(queries, rows, overlap, kBlockRows);
      for (int64_t q = 0; q < queries.rows; ++q) {
        uint64_t most = best[first + q];
        for (int64_t r = 0; r < rows.rows; ++r) {
          most = std::max(most, match_key(overlap[q * kBlockRows + r], least[row + r], row + r));
        }
        best[first + q] = most;
      }
    }
  }
}

}  // namespace memoir
