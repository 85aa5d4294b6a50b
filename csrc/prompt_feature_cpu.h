// prompt_feature of one sequence on the CPU.
#pragma once

#include <cstdint>

namespace memoir {

constexpr int64_t kBlockTokens = 32;    // tokens summed one by one before their sum joins the total
constexpr int64_t kFeatureChunk = 512;  // columns that one unit of work sums

// feature[c] = mean over the marked tokens of x[s * stride + c], minus mu[c], for c < columns <= kFeatureChunk; in
// float32, in the order that the reference takes. No marked token: NaN. T: double, float, BFloat16, Half.
template <class T>
void prompt_feature_chunk(const T* x, int64_t stride, const bool* marked, int64_t mark_stride, int64_t tokens,
                          const float* mu, int64_t columns, float* feature);

}  // namespace memoir
