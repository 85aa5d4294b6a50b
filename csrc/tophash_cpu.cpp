#include "tophash_cpu.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace memoir {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;
constexpr int kShift = 20;  // the first digit: exponent and three bits of the fraction
constexpr int kDigits = 1 << (31 - kShift);

// A float's magnitude as an integer orders like the magnitude itself. Returns the largest.
uint32_t magnitudes(const float* feature, int64_t width, uint32_t* magnitude) {
  std::memcpy(magnitude, feature, width * sizeof(float));
  uint32_t largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    magnitude[i] &= 0x7fffffff;
    largest = std::max(largest, magnitude[i]);
  }
  return largest;
}

struct Threshold {
  uint32_t magnitude;  // the k-th largest
  int64_t ties;        // how many elements of exactly this magnitude are chosen
};

// One histogram by the leading digit, then a selection among the few elements that share the k-th one's digit.
Threshold kth_largest(const uint32_t* magnitude, int64_t width, int64_t k, std::vector<uint32_t>& candidates) {
  uint32_t histogram[2][kDigits] = {};  // two, so that runs of one digit do not wait for each other's store
  int64_t i = 0;
  for (; i + 1 < width; i += 2) {
    ++histogram[0][magnitude[i] >> kShift];
    ++histogram[1][magnitude[i + 1] >> kShift];
  }
  if (i < width) ++histogram[0][magnitude[i] >> kShift];

  uint32_t digit = kDigits - 1;
  int64_t left = k;
  for (;; --digit) {
    const int64_t members = histogram[0][digit] + static_cast<int64_t>(histogram[1][digit]);
    if (left <= members) break;
    left -= members;
  }

  candidates.resize(width + 1);
  int64_t count = 0;
  for (i = 0; i < width; ++i) {
    candidates[count] = magnitude[i];
    count += magnitude[i] >> kShift == digit;
  }
  const auto first = candidates.begin();
  std::nth_element(first, first + left - 1, first + count, std::greater<>());
  const uint32_t threshold = candidates[left - 1];
  const int64_t above = std::count_if(first, first + left, [=](uint32_t value) { return value > threshold; });
  return {threshold, left - above};
}

}  // namespace

bool tophash_row(const float* feature, int64_t width, int64_t k, const int32_t* permutation, int64_t words,
                 int32_t* mask, int32_t* columns, TopHashScratch& scratch) {
  std::fill_n(mask, words, 0);
  scratch.magnitude.resize(width);
  uint32_t* magnitude = scratch.magnitude.data();
  if (magnitudes(feature, width, magnitude) >= kInfinity) {
    std::fill_n(columns, k, -1);
    return true;
  }
  const Threshold threshold = kth_largest(magnitude, width, k, scratch.candidates);

  // Without branches: a third of the elements are chosen, in no order that a predictor could learn.
  int64_t ties = threshold.ties;
  for (int64_t i = 0; i < width; ++i) {
    const bool tie = magnitude[i] == threshold.magnitude;
    const uint32_t chosen = (magnitude[i] > threshold.magnitude) | (tie & (ties > 0));
    ties -= tie;
    const uint32_t bit = static_cast<uint32_t>(permutation[i]);
    mask[bit / 32] |= static_cast<int32_t>(chosen << bit % 32);
  }

  int64_t set = 0;
  for (int64_t word = 0; word < words; ++word) {
    for (uint32_t bits = static_cast<uint32_t>(mask[word]); bits != 0; bits &= bits - 1) {
      columns[set++] = static_cast<int32_t>(word * 32 + __builtin_ctz(bits));
    }
  }
  std::fill(columns + set, columns + k, -1);
  return set == k;
}

}  // namespace memoir
