#include "hash_cpu.h"

#include <algorithm>

#include "floats.h"

namespace memoir {

template <class T>
void prompt_feature_chunk(const T* x, int64_t stride, const bool* marked, int64_t mark_stride, int64_t tokens,
                          const float* mu, int64_t columns, float* feature) {
  float block[kFeatureChunk];
  float total[kFeatureChunk] = {};
  int64_t count = 0;
  int64_t first = 0;
  while (first < tokens && !marked[first * mark_stride]) ++first;

  for (int64_t begin = first; begin < tokens; begin += kBlockTokens) {
    std::fill_n(block, columns, 0.0f);
    const int64_t end = std::min(begin + kBlockTokens, tokens);
    for (int64_t token = begin; token < end; ++token) {
      if (!marked[token * mark_stride]) continue;
      ++count;
      const T* row = x + token * stride;
      for (int64_t c = 0; c < columns; ++c) block[c] += static_cast<float>(widen(row[c]));
    }
    for (int64_t c = 0; c < columns; ++c) total[c] += block[c];
  }
  for (int64_t c = 0; c < columns; ++c) feature[c] = total[c] / static_cast<float>(count) - mu[c];
}

#define MEMOIR_INSTANCE(T)                                                                                          \
  template void prompt_feature_chunk<T>(const T*, int64_t, const bool*, int64_t, int64_t, const float*, int64_t, \
                                        float*);
MEMOIR_INSTANCE(double)
MEMOIR_INSTANCE(float)
MEMOIR_INSTANCE(BFloat16)
MEMOIR_INSTANCE(Half)
#undef MEMOIR_INSTANCE

}  // namespace memoir
