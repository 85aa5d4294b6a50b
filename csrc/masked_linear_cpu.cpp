#include "masked_linear_cpu.h"

#include "cpu_path.h"

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

template <class T>
RowSums<T> row_sums() {
  return OF_CPU_PATH(sums<T, typename Wide<T>::type>);
}

template RowSums<double> row_sums<double>();
template RowSums<float> row_sums<float>();
template RowSums<BFloat16> row_sums<BFloat16>();
template RowSums<Half> row_sums<Half>();

}  // namespace memoir
