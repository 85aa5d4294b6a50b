// tophash of one row on the CPU.
#pragma once

#include <cstdint>
#include <vector>

namespace memoir {

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
