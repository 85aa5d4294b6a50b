#include "masked_linear_cpu.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cpu_path.h"
#include "trial.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace memoir {
namespace portable {
namespace {

template <class S>
struct Lanes {
  using Vector = S;
  static constexpr int kLanes = 1;
  static Vector same(S value) { return value; }
  template <class T>
  static Vector load(const T* from) {
    return widen(*from);
  }
  static void store(S* to, Vector value) { *to = value; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector multiply(Vector a, Vector b) { return a * b; }
};

#include "row_sums.inc"

}  // namespace
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
namespace avx2 {
namespace {

template <class S>
struct Lanes;

template <>
struct Lanes<float> {
  using Vector = __m256;
  static constexpr int kLanes = 8;
  static inline Vector same(float value) { return _mm256_set1_ps(value); }
  static inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static inline Vector load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static inline Vector load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static inline void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
  static inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
};

template <>
struct Lanes<double> {
  using Vector = __m256d;
  static constexpr int kLanes = 4;
  static inline Vector same(double value) { return _mm256_set1_pd(value); }
  static inline Vector load(const double* from) { return _mm256_loadu_pd(from); }
  static inline void store(double* to, Vector value) { _mm256_storeu_pd(to, value); }
  static inline Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  static inline Vector multiply(Vector a, Vector b) { return _mm256_mul_pd(a, b); }
};

#include "row_sums.inc"

}  // namespace
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f")
namespace avx512 {
namespace {

template <class S>
struct Lanes;

template <>
struct Lanes<float> {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static inline Vector same(float value) { return _mm512_set1_ps(value); }
  static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static inline Vector load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static inline Vector load(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static inline void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
  static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static inline Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
};

template <>
struct Lanes<double> {
  using Vector = __m512d;
  static constexpr int kLanes = 8;
  static inline Vector same(double value) { return _mm512_set1_pd(value); }
  static inline Vector load(const double* from) { return _mm512_loadu_pd(from); }
  static inline void store(double* to, Vector value) { _mm512_storeu_pd(to, value); }
  static inline Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }
  static inline Vector multiply(Vector a, Vector b) { return _mm512_mul_pd(a, b); }
};

#include "row_sums.inc"

}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

template <class T>
using RowSums = void (*)(const T*, int64_t, const int32_t*, int64_t, const typename Wide<T>::type*, int64_t, int64_t,
                         typename Wide<T>::type*, int64_t);

template <class T>
constexpr const char* kName = "";
template <>
constexpr const char* kName<double> = "float64";
template <>
constexpr const char* kName<float> = "float32";
template <>
constexpr const char* kName<BFloat16> = "bfloat16";
template <>
constexpr const char* kName<Half> = "float16";

constexpr int64_t kLeastWork = 1 << 16;  // of columns times outputs: less is too short to be timed

// The paths to choose among, the widest first, and how far that is: for one token, which waits for memory, and for more.
template <class T>
struct Paths {
  Paths() {
    using S = typename Wide<T>::type;
    std::vector<std::string> names;
    const auto add = [&](CpuPath path, RowSums<T> sums) {
      if (!cpu_supports(path)) return;
      functions.push_back(sums);
      names.push_back(name_of(path));
    };
#if defined(__x86_64__)
    add(CpuPath::avx512, avx512::sums<T, S>);
    add(CpuPath::avx2, avx2::sums<T, S>);
#endif
    if (names.empty()) add(CpuPath::portable, portable::sums<T, S>);
    const std::string what = std::string("product with an edit's rows, ") + kName<T>;
    one = new Trial(what + ", one token", names);
    more = new Trial(what + ", more tokens", names);
  }

  std::vector<RowSums<T>> functions;
  Trial *one, *more;
};

}  // namespace

template <class T>
void row_sums(const T* memory, int64_t stride, const int32_t* columns, int64_t k, const typename Wide<T>::type* scale,
              int64_t tokens, int64_t outputs, typename Wide<T>::type* sum, int64_t sum_stride) {
  const auto by = [&](RowSums<T> sums) {
    sums(memory, stride, columns, k, scale, tokens, outputs, sum, sum_stride);
  };
  if (cpu_path_is_forced()) return by(OF_CPU_PATH(sums<T, typename Wide<T>::type>));
  static const Paths<T> known;
  Trial& trial = tokens == 1 ? *known.one : *known.more;
  const int winner = trial.winner();
  if (winner >= 0 || k * outputs < kLeastWork) return by(known.functions[std::max(winner, 0)]);
  const int way = trial.turn();
  const Stopwatch watch;
  by(known.functions[way]);
  trial.record(way, static_cast<double>(k * outputs * static_cast<int64_t>(sizeof(T))), watch.seconds());
}

#define MEMOIR_ROW_SUMS(T)                                                                                          \
  template void row_sums<T>(const T*, int64_t, const int32_t*, int64_t, const Wide<T>::type*, int64_t, int64_t,     \
                            Wide<T>::type*, int64_t)
MEMOIR_ROW_SUMS(double);
MEMOIR_ROW_SUMS(float);
MEMOIR_ROW_SUMS(BFloat16);
MEMOIR_ROW_SUMS(Half);
#undef MEMOIR_ROW_SUMS

}  // namespace memoir
