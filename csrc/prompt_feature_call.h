// One call of prompt_feature on a GPU, for a launcher that knows torch and a kernel that does not.
#pragma once

#include <cstdint>

namespace memoir {

enum class FeatureType { float32, float16, bfloat16 };

struct FeatureCall {
  const void* x;
  const bool* marked;
  const float* mu;
  float* feature;
  int64_t x_batch, x_token;  // elements; a token's inputs lie side by side
  int64_t marked_batch, marked_token, mu_step;
  int batch, tokens, width;
};

}  // namespace memoir
