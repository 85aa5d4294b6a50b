#include "hash_cpu.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace memoir {
namespace {

constexpr int kShift = 20;  // the leading digit: exponent and three bits of the fraction
constexpr int kDigits = 1 << (31 - kShift);

// A float's magnitude as an integer orders like the magnitude itself. False where one is NaN or infinity.
bool magnitudes(const float* feature, int64_t width, uint32_t* magnitude) {
  std::memcpy(magnitude, feature, width * sizeof(float));
  uint32_t carry = 0;
  for (int64_t i = 0; i < width; ++i) {
    magnitude[i] &= 0x7fffffff;
    carry |= magnitude[i] + 0x00800000;  // reaches the top bit from 0x7f800000, infinity, on
  }
  return carry < 0x80000000;
}

struct Threshold {
  uint32_t magnitude;  // the k-th largest
  int64_t ties;        // how many elements of exactly this magnitude are chosen
  bool all_ties;       // whether those are all that there are
};

// One histogram by the leading digit, then a selection among the few elements that share the k-th one's digit.
Threshold kth_largest(const uint32_t* magnitude, int64_t width, int64_t k, uint32_t* candidates) {
  constexpr int kTables = 4;  // so that a run of one digit does not wait for its own last store
  uint32_t histogram[kTables][kDigits] = {};
  int64_t i = 0;
  for (; i + kTables <= width; i += kTables) {
    for (int table = 0; table < kTables; ++table) ++histogram[table][magnitude[i + table] >> kShift];
  }
  for (; i < width; ++i) ++histogram[0][magnitude[i] >> kShift];

  uint32_t digit = kDigits - 1;
  int64_t left = k;
  for (;; --digit) {
    int64_t members = 0;
    for (const auto& table : histogram) members += table[digit];
    if (left <= members) break;
    left -= members;
  }

  int64_t count = 0;
  for (i = 0; i < width; ++i) {
    candidates[count] = magnitude[i];
    count += magnitude[i] >> kShift == digit;
  }
  std::nth_element(candidates, candidates + left - 1, candidates + count, std::greater<>());
  const uint32_t threshold = candidates[left - 1];
  const int64_t above = std::count_if(candidates, candidates + left, [=](uint32_t value) { return value > threshold; });
  const int64_t equal = std::count(candidates, candidates + count, threshold);
  return {threshold, left - above, left - above == equal};
}

// Without branches: a third of the elements are chosen, in no order that a predictor could learn.
void mark(const uint32_t* magnitude, int64_t width, Threshold threshold, const int32_t* permutation, uint8_t* chosen) {
  int64_t last = width;  // ties count up to here
  if (!threshold.all_ties) {
    last = 0;
    for (int64_t ties = 0; ties < threshold.ties; ++last) ties += magnitude[last] == threshold.magnitude;
  }
  int64_t i = 0;
  for (; i < last; ++i) chosen[permutation[i]] = magnitude[i] >= threshold.magnitude;
  for (; i < width; ++i) chosen[permutation[i]] = magnitude[i] > threshold.magnitude;
}

// 32 bytes of 0 or 1 to 32 bits: a multiplication gathers the lowest bit of eight bytes into the topmost byte.
uint32_t pack(const uint8_t* chosen) {
  uint32_t bits = 0;
  for (int part = 0; part < 4; ++part) {
    uint64_t bytes = 0;
    for (int i = 0; i < 8; ++i) bytes |= static_cast<uint64_t>(chosen[8 * part + i]) << 8 * i;
    bits |= static_cast<uint32_t>(bytes * 0x0102040810204080u >> 56) << 8 * part;
  }
  return bits;
}

}  // namespace

bool tophash_row(const float* feature, int64_t width, int64_t k, const int32_t* permutation, int64_t words,
                 int32_t* mask, int32_t* columns, TopHashScratch& scratch) {
  scratch.magnitude.resize(width);
  scratch.candidates.resize(width + 1);
  scratch.chosen.assign(32 * words, 0);
  if (!magnitudes(feature, width, scratch.magnitude.data())) {
    std::fill_n(mask, words, 0);
    std::fill_n(columns, k, -1);
    return true;
  }
  const Threshold threshold = kth_largest(scratch.magnitude.data(), width, k, scratch.candidates.data());
  mark(scratch.magnitude.data(), width, threshold, permutation, scratch.chosen.data());

  int64_t set = 0;
  for (int64_t word = 0; word < words; ++word) {
    uint32_t bits = pack(scratch.chosen.data() + 32 * word);
    mask[word] = static_cast<int32_t>(bits);
    for (; bits != 0; bits &= bits - 1) columns[set++] = static_cast<int32_t>(word * 32 + __builtin_ctz(bits));
  }
  std::fill(columns + set, columns + k, -1);
  return set == k;
}

}  // namespace memoir
