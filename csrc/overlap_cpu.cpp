#include "overlap_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu_path.h"
#include "trial.h"

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
  static constexpr int kWords = 2, kTileRows = 2, kTileQueries = 2;

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
  static constexpr int kWords = 8, kTileRows = 2, kTileQueries = 2;

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
  static constexpr int kWords = 16, kTileRows = 4, kTileQueries = 4;

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

namespace {

using Scan = uint64_t (*)(const Masks&, const Masks&, const Thresholds&, int64_t, uint64_t);

struct ScanWay {
  const char* name;
  CpuPath path;
  Scan scan;
};

// The first of a path serves until one is known to be quicker, and stores that are too small to tell.
constexpr ScanWay kWays[] = {
#if defined(__x86_64__)
    {"avx512 in 4 streams", CpuPath::avx512, avx512::scan_streams<4>},
    {"avx512 in 2 streams", CpuPath::avx512, avx512::scan_streams<2>},
    {"avx512 prefetched 8 KiB ahead", CpuPath::avx512, avx512::scan_rows<8192>},
    {"avx512 row by row", CpuPath::avx512, avx512::scan_rows<0>},
    {"avx2 in 4 streams", CpuPath::avx2, avx2::scan_streams<4>},
    {"avx2 prefetched 8 KiB ahead", CpuPath::avx2, avx2::scan_rows<8192>},
#endif
    {"portable row by row", CpuPath::portable, portable::scan_rows<0>},
    {"portable prefetched 4 KiB ahead", CpuPath::portable, portable::scan_rows<4096>},
    {"portable in 4 streams", CpuPath::portable, portable::scan_streams<4>},
};

// The ways of one path; of `any`, those of every path but the portable one, where there is another.
std::vector<ScanWay> ways_of(CpuPath path, bool any) {
  std::vector<ScanWay> found;
  for (const ScanWay& way : kWays) {
    const bool wanted = any && path != CpuPath::portable ? way.path != CpuPath::portable : way.path == path;
    if (wanted && cpu_supports(way.path)) found.push_back(way);
  }
  return found;
}

std::atomic<Scan> forced_scan{nullptr};

// A search is tried out from kLeastBytes on, in pieces; from kMemoryBytes on a store is taken to lie in memory.
constexpr int64_t kLeastBytes = 1 << 20, kMemoryBytes = 16 << 20;
constexpr int64_t kCachePiece = 512 << 10, kMemoryPiece = 2 << 20, kLeastPiece = 64 << 10;

// What is chosen among, and by size of the store how far that is.
struct Ways {
  Ways(const std::string& which, std::vector<ScanWay> of) : ways(std::move(of)) {
    std::vector<std::string> names;
    for (const ScanWay& way : ways) names.push_back(way.name);
    cache = new Trial("search for one query in a cache" + which, names);
    memory = new Trial("search for one query in memory" + which, names);
  }

  std::vector<ScanWay> ways;
  Trial *cache, *memory;
};

const Ways& ways_in_force() {
  if (!cpu_path_is_forced()) {
    static const Ways any("", ways_of(widest_cpu_path(), true));
    return any;
  }
  switch (cpu_path()) {
    case CpuPath::avx512: {
      static const Ways alone(", avx512 alone", ways_of(CpuPath::avx512, false));
      return alone;
    }
    case CpuPath::avx2: {
      static const Ways alone(", avx2 alone", ways_of(CpuPath::avx2, false));
      return alone;
    }
    case CpuPath::portable:
      break;
  }
  static const Ways alone(", portable alone", ways_of(CpuPath::portable, false));
  return alone;
}

uint64_t scan(const Masks& query, const Masks& store, const Thresholds& least, int64_t begin, int64_t end,
              uint64_t best) {
  if (const Scan forced = forced_scan.load(std::memory_order_relaxed)) {
    return forced(query, store.slice(begin, end - begin), least, begin, best);
  }
  const Ways& known = ways_in_force();
  const int64_t row_bytes = store.words * 4, bytes = store.rows * row_bytes;
  Trial& trial = bytes < kMemoryBytes ? *known.cache : *known.memory;
  const int winner = trial.winner();
  if (winner >= 0 || bytes < kLeastBytes) {
    return known.ways[std::max(winner, 0)].scan(query, store.slice(begin, end - begin), least, begin, best);
  }
  const int64_t most = std::max<int64_t>(1, (bytes < kMemoryBytes ? kCachePiece : kMemoryPiece) / row_bytes);
  const int64_t piece = std::min(most, end - begin);  // of many threads, each has less
  for (int64_t row = begin; row < end; row += piece) {
    const Masks rows = store.slice(row, std::min(piece, end - row));
    const int way = trial.turn();
    const Stopwatch watch;
    best = known.ways[way].scan(query, rows, least, row, best);
    const int64_t passed = rows.rows * row_bytes;
    if (rows.rows == piece && passed >= kLeastPiece) trial.record(way, static_cast<double>(passed), watch.seconds());
  }
  return best;
}

}  // namespace

void force_scan(const std::string& way) {
  Scan found = nullptr;
  for (const ScanWay& one : kWays) {
    if (way == one.name && cpu_supports(one.path)) found = one.scan;
  }
  if (!way.empty() && found == nullptr) throw std::invalid_argument("this CPU has no search that is called " + way);
  forced_scan = found;
}

void mask_match_rows(const Masks& query, const Masks& store, const Thresholds& least, int64_t begin, int64_t end,
                     uint64_t* best) {
  if (query.rows == 1) {
    best[0] = scan(query, store, least, begin, end, best[0]);
    return;
  }
  const auto match = OF_CPU_PATH(match);
  const Masks rows = store.slice(begin, end - begin);
  for (int64_t q = 0; q < query.rows; q += kQueriesAtOnce) {
    match(query.slice(q, std::min(kQueriesAtOnce, query.rows - q)), rows, least, begin, best + q);
  }
}

void mask_overlap_rows(const Masks& query, const Masks& store, int64_t begin, int64_t end, int32_t* overlap) {
  const auto overlaps = OF_CPU_PATH(overlaps);
  const Masks rows = store.slice(begin, end - begin);
  for (int64_t q = 0; q < query.rows; q += kQueriesAtOnce) {
    const Masks queries = query.slice(q, std::min(kQueriesAtOnce, query.rows - q));
    overlaps(queries, rows, overlap + q * store.rows + begin, store.rows);
  }
}

}  // namespace memoir
