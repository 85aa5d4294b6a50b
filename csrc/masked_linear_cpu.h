// Sums of scaled memory rows: the arithmetic of the residual product.
#pragma once

#include <cstdint>

#include "floats.h"

namespace memoir {

// The type that sums are taken in: float, and double for double.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// Tokens that one pass over the memory rows serves.
constexpr int64_t kTokens = 4;

// sum[t * sum_stride + o] = sum over i < k of scale[i * kTokens + t] * memory[columns[i] * stride + o], for t < tokens
// and o < outputs, added in the order of i, every product rounded before it is added: the same bits on every path.
// `columns` lie within memory; 1 <= tokens <= kTokens.
//
// The kernel of the CPU path in force, for T in double, float, BFloat16, Half. Unless a path is forced, the first calls
// tell which of this CPU's is the quickest (trial.h).
template <class T>
void row_sums(const T* memory, int64_t stride, const int32_t* columns, int64_t k, const typename Wide<T>::type* scale,
              int64_t tokens, int64_t outputs, typename Wide<T>::type* sum, int64_t sum_stride);

}  // namespace memoir
