// How a prompt is hashed on the CPU: the mean over its tokens, and the largest magnitudes of one row.
#pragma once

#include <cstdint>
#include <vector>

namespace memoir {

constexpr int64_t kBlockTokens = 32;    // tokens summed one by one before their sum joins the total
constexpr int64_t kFeatureChunk = 512;  // columns that one unit of work sums

// feature[c] = mean over the marked tokens of x[s * stride + c], minus mu[c], for c < columns <= kFeatureChunk; in
// float32, in the order that the reference takes. No marked token: NaN. T: double, float, BFloat16, Half.
template <class T>
void prompt_feature_chunk(const T* x, int64_t stride, const bool* marked, int64_t mark_stride, int64_t tokens,
                          const float* mu, int64_t columns, float* feature);

// Scratch of one thread, reused from row to row.
struct TopHashScratch {
  std::vector<uint32_t> magnitude;   // [width]
  std::vector<uint32_t> candidates;  // [width + 1]
  std::vector<uint8_t> chosen;       // [32 * words], one byte per column
};

// feature f32 [width], permutation [width] within [0, width) -> mask int32 [words], columns int32 [k] ascending.
// A feature that is not finite gives an empty mask and columns of -1.
// False where the permutation repeats a number, so that fewer than k bits were set; columns are then -1 past them.
bool tophash_row(const float* feature, int64_t width, int64_t k, const int32_t* permutation, int64_t words,
                 int32_t* mask, int32_t* columns, TopHashScratch& scratch);

}  // namespace memoir
