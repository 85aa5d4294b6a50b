// csrc/block_sums.cuh's instructions on the CPU.
#pragma once

namespace memoir {

constexpr int kWarpLanes = kLanes;

inline unsigned int bits_of_float(float value) { return bits_of(value); }

inline int sum_of_warp(int value) {
  return warp().exchange(lane(), {static_cast<uint64_t>(static_cast<uint32_t>(value))}, [](const auto& slots) {
    uint32_t sum = 0;
    for (const auto& slot : slots) sum += static_cast<uint32_t>(slot[0]);
    return static_cast<int>(sum);
  });
}

inline int largest_of_warp(int value) {
  return warp().exchange(lane(), {static_cast<uint64_t>(static_cast<uint32_t>(value))}, [](const auto& slots) {
    int largest = static_cast<int>(slots[0][0]);
    for (const auto& slot : slots) largest = std::max(largest, static_cast<int>(static_cast<uint32_t>(slot[0])));
    return largest;
  });
}

// The value of the lane `apart` below; a lane that has none below keeps its own.
inline int from_lane_below(int value, int apart) {
  return warp().exchange(lane(), {static_cast<uint64_t>(static_cast<uint32_t>(value))}, [&](const auto& slots) {
    return static_cast<int>(static_cast<uint32_t>(slots[lane() >= apart ? lane() - apart : lane()][0]));
  });
}

inline float divided(float a, float b) { return a / b; }
inline float minus(float a, float b) { return a - b; }
inline int anew(int value) { return value; }
inline int lowest_bit(unsigned int word) { return __builtin_ctz(word); }
inline int shared_increment(int* at) { return std::atomic_ref<int>(*at).fetch_add(1); }
inline void shared_or(unsigned int* word, unsigned int bits) { std::atomic_ref<unsigned int>(*word).fetch_or(bits); }

}  // namespace memoir
