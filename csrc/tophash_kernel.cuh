// TopHash on a GPU: a block selects one row's k largest magnitudes from its registers, sets their columns' bits in shared
// memory, and writes mask and columns from there. Nothing goes through device memory but inputs and outputs.
#pragma once

#include "block_sums.cuh"
#include "hash_calls.h"

namespace memoir {

constexpr int kMostWords = kWidestHash / 32;
constexpr int kInfinity = 0x7f800000;  // the smallest magnitude pattern that is not finite
constexpr int kGuesses = 16;           // rounds that may interpolate; bisection bounds what is left by 31
constexpr int kNear = 8;  // so few magnitudes left are taken as evenly spread, more as falling off exponentially
constexpr int kFew = 64;  // so few are ranked among themselves instead of searched

// A row's bits, and how many are set before each word.
struct Bits {
  unsigned int word[kMostWords];
  int before[kMostWords];
};

template <int kThreads>
struct HashShared {
  Bits bits;
  BlockSums<kThreads> sums;
  int of_warp[kMostWords / kWarpLanes];
  unsigned long long few[kFew];  // keys of the elements among which the k-th largest is
  unsigned long long last;       // the k-th largest's
  int used;
};

template <int kThreads, int kVectors>
struct Row {
  static constexpr int kValues = 4 * kVectors;
  static constexpr int kCapacity = kThreads * kValues;

  // Place i of a thread is element `index(i, thread)` of the row: four side by side per load.
  DEVICE static int index(int i, int thread) { return (i / 4 * kThreads + thread) * 4 + i % 4; }

  // A bit for each place of a thread whose element is not behind element `last`, which may be -1: there is none.
  DEVICE static unsigned int through(int last, int thread) {
    const int left = last - thread * 4, within = left % (4 * kThreads);
    const int places = left < 0 ? 0 : left / (4 * kThreads) * 4 + (within < 3 ? within : 3) + 1;
    return places > 0 ? 0xffffffffu >> (32 - places) : 0;
  }
};

// The elements of a row that thread `thread` has, any numbers past its end. Whole pieces have one branch around all loads: behind one of its
// own each would wait for the load before it.
template <int kThreads, int kVectors>
DEVICE void load_row(uint4 (&four)[kVectors], const void* from, int width, bool pieces, int thread) {
  const auto* values = static_cast<const unsigned int*>(from);
  if (pieces && width % 4 == 0) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = Row<kThreads, kVectors>::index(4 * v, thread);
      four[v] = load_cached(reinterpret_cast<const uint4*>(values + (first < width ? first : 0)));
    }
  } else {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = Row<kThreads, kVectors>::index(4 * v, thread);
      four[v] = uint4{};
      if (first < width) four[v].x = values[first];
      if (first + 1 < width) four[v].y = values[first + 1];
      if (first + 2 < width) four[v].z = values[first + 2];
      if (first + 3 < width) four[v].w = values[first + 3];
    }
  }
}

// How many of a thread's magnitudes reach a threshold.
template <int kValues>
DEVICE int reached(const int (&magnitude)[kValues], int threshold) {
  int missed = 0;  // a difference's sign bit is cheaper to add up than a comparison
#pragma unroll
  for (int i = 0; i < kValues; ++i) missed += static_cast<unsigned int>(magnitude[i] - threshold) >> 31;
  return kValues - missed;
}

// A bit for each of a thread's places whose magnitude reaches a threshold of at least -1; those above the last place are any.
template <int kValues>
DEVICE unsigned int places_from(const int (&magnitude)[kValues], int threshold) {
  static_assert(kValues <= 32);
  unsigned int missed = 0;  // sign bits again: comparisons would be kept as predicates, of which there are few
#pragma unroll
  for (int i = kValues - 1; i >= 0; --i) {
    const unsigned int apart = static_cast<unsigned int>(magnitude[i]) - static_cast<unsigned int>(threshold);
    missed = missed << 1 | apart >> 31;
  }
  return ~missed;
}

struct Bracket {
  int low, high;         // count(magnitude >= low) >= k > count(magnitude >= high)
  int at_low, at_high;   // those counts
};

// The k-th largest of a row: ends where exactly k magnitudes reach `low`, where those in [low, high) are few, or where they
// are all equal.
// Patterns of floats are logarithms to a few percent, so the search interpolates; `count(threshold)` asks the block.
template <class Count>
DEVICE Bracket search(int k, int width, int largest, int guess, const Count& count) {
  Bracket found{0, largest + 1, width, 0};
  int middle = guess, counted = width, rounds = 0;
  float value = 0.0f;
  while (found.high - found.low > 1 && found.at_low != k && found.at_low - found.at_high > kFew) {
    middle = middle < found.high - 1 ? middle : found.high - 1;
    middle = middle > found.low + 1 ? middle : found.low + 1;
    const int last_count = counted;
    const float last_value = value;
    value = float_of_bits(static_cast<unsigned int>(middle));
    counted = count(middle);
    if (counted >= k) {
      found.low = middle, found.at_low = counted;
    } else {
      found.high = middle, found.at_high = counted;
    }
    ++rounds;
    // The next guess: where the secant of (count - k) / (count + k), near half of log(count / k), is 0; with few left,
    // evenly within the bracket; if neither falls into it, and in the end, its middle.
    const int bracket = found.high - found.low;
    int next = found.low;
    if (found.at_low - found.at_high <= kNear) {
      const float share = (static_cast<float>(found.at_low - k) + 0.5f) / static_cast<float>(found.at_low - found.at_high + 1);
      next += static_cast<int>(static_cast<float>(bracket) * share);
    } else {
      const float fall = 2.0f * static_cast<float>(last_count - counted) * static_cast<float>(k);
      const float rise = static_cast<float>(counted - k) * static_cast<float>(last_count + k);
      next = static_cast<int>(bits_of_float(value + (value - last_value) * (rise / (fall == 0.0f ? 1.0f : fall))));
    }
    const bool inside = next > found.low && next < found.high && rounds < kGuesses;
    middle = inside ? next : found.low + bracket / 2;
  }
  return found;
}

// Fills before[] and returns how many bits are set in all. Every thread of at least `words` takes part.
template <int kThreads>
DEVICE int count_before(HashShared<kThreads>& shared, int words) {
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  int total = 0;
#pragma unroll 1
  for (int start = 0; start < words; start += kThreads) {
    const int w = start + static_cast<int>(threadIdx.x);
    const int own = w < words ? count_bits(shared.bits.word[w]) : 0;
    int through = own;
#pragma unroll
    for (int apart = 1; apart < kWarpLanes; apart *= 2) {
      const int below = from_lane_below(through, apart);
      if (lane >= apart) through += below;
    }
    block_barrier();  // everybody has left of_warp
    if (lane == kWarpLanes - 1) shared.of_warp[warp] = through;
    block_barrier();
    int earlier = total;
    constexpr int kWarps = kThreads / kWarpLanes < kMostWords / kWarpLanes ? kThreads / kWarpLanes : kMostWords / kWarpLanes;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      earlier += other < warp ? shared.of_warp[other] : 0;
      total += shared.of_warp[other];
    }
    if (w < words) shared.bits.before[w] = earlier + through - own;
  }
  block_barrier();
  return total;
}

// An element as one number: the larger magnitude is larger, and of equal ones the lower index.
DEVICE unsigned long long key_of(int magnitude, int index) {
  return static_cast<unsigned long long>(magnitude) << 32 | (0xffffffffu - static_cast<unsigned int>(index));
}

DEVICE void set_bit(Bits& bits, unsigned int place) { shared_or(&bits.word[place / 32], 1u << place % 32); }
DEVICE bool bit_of(const Bits& bits, unsigned int place) { return (bits.word[place / 32] >> place % 32 & 1) != 0; }
DEVICE int rank_of(const Bits& bits, unsigned int place) {
  return bits.before[place / 32] + count_bits(bits.word[place / 32] & ((1u << place % 32) - 1));
}

// Registers beside a row's values, as the compiler needs them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kOtherRegisters = 40;
#else
constexpr int kOtherRegisters = 33;
#endif

// Blocks of a multiprocessor whose threads have registers enough for so many values.
constexpr int resident_blocks(int threads, int vectors) {
  const int registers = vectors * 4 + kOtherRegisters;
  const int blocks = 65536 / (threads * registers);
  return blocks > 1 ? blocks : 1;
}

// Grid: a block per row.
template <int kThreads, int kVectors>
GLOBAL LAUNCH_BOUNDS(kThreads, resident_blocks(kThreads, kVectors)) void hash_row(const HashCall call) {
  static_assert(kThreads >= kFew && kThreads % kWarpLanes == 0);
  static_assert(kThreads <= kMostWords);  // of_warp has no room for more warps
  using R = Row<kThreads, kVectors>;
  SHARED_ALIGNED(16) HashShared<kThreads> shared;
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  if (call.admit) admit_successor();
#pragma unroll 1
  for (int w = threadIdx.x; w < kMostWords; w += kThreads) shared.bits.word[w] = 0;
  if (threadIdx.x == 0) shared.used = 0;
  wait_for_predecessors();

  uint4 four[kVectors];
  load_row<kThreads, kVectors>(four, call.feature + row * call.feature_row, call.width, call.pieces, threadIdx.x);
  int magnitude[R::kValues];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int first = R::index(4 * v, threadIdx.x);
    magnitude[4 * v] = first < call.width ? static_cast<int>(four[v].x & 0x7fffffff) : -1;  // no threshold is reached past the row's end
    magnitude[4 * v + 1] = first + 1 < call.width ? static_cast<int>(four[v].y & 0x7fffffff) : -1;
    magnitude[4 * v + 2] = first + 2 < call.width ? static_cast<int>(four[v].z & 0x7fffffff) : -1;
    magnitude[4 * v + 3] = first + 3 < call.width ? static_cast<int>(four[v].w & 0x7fffffff) : -1;
  }

  int largest = 0, logarithms = 0;
#pragma unroll
  for (int i = 0; i < R::kValues; ++i) {
    largest = magnitude[i] > largest ? magnitude[i] : largest;
    logarithms += magnitude[i] >> 15;
  }
  int turn = 0;
  largest = shared.sums.largest(largest);
  logarithms = shared.sums.sum(logarithms, turn++);
  int32_t* mask = call.mask + row * call.words;
  int32_t* columns = call.columns + row * call.k;
  if (largest >= kInfinity) {
#pragma unroll 1
    for (int w = threadIdx.x; w < call.words; w += kThreads) mask[w] = 0;
#pragma unroll 1
    for (int j = threadIdx.x; j < call.k; j += kThreads) columns[j] = -1;
    return;
  }

  const int mean = logarithms / call.width * 32768;
  const int reach = call.reach < largest - mean ? call.reach : largest - mean;  // of huge magnitudes the sum would overflow
  const Bracket found = search(call.k, call.width, largest, mean + reach,
                               [&](int threshold) { return shared.sums.sum(reached(magnitude, threshold), turn++); });

  const int thread = anew(threadIdx.x);

  // Chosen is what reaches `bar`, and of the magnitude below it what has no index above `last`.
  int bar = found.low, last = -1;
  const int wanted = call.k - found.at_high;  // of those in [low, high)
  if (found.at_low == call.k) {
  } else if (found.at_low - found.at_high <= kFew) {
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      if (magnitude[i] >= found.low && magnitude[i] < found.high) {
        shared.few[shared_increment(&shared.used)] = key_of(magnitude[i], R::index(i, thread));
      }
    }
    block_barrier();
    const int few = found.at_low - found.at_high;
    if (static_cast<int>(threadIdx.x) < few) {
      const unsigned long long own = shared.few[threadIdx.x];
      int above = 0;
#pragma unroll 4
      for (int j = 0; j < few; ++j) above += shared.few[j] > own;
      if (above == wanted - 1) shared.last = own;
    }
    block_barrier();
    bar = static_cast<int>(shared.last >> 32) + 1;
    last = static_cast<int>(0xffffffffu - static_cast<unsigned int>(shared.last));
  } else {  // many are equal: the ones with the lowest indices are chosen
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      if (magnitude[i] >= found.low && magnitude[i] < found.high) set_bit(shared.bits, R::index(i, thread));
    }
    block_barrier();
    count_before(shared, call.words);
    const int once_more = anew(thread);
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      const bool ties = magnitude[i] >= found.low && magnitude[i] < found.high;
      if (ties && rank_of(shared.bits, R::index(i, once_more)) >= wanted) magnitude[i] = -1;
    }
    block_barrier();
#pragma unroll 1
    for (int w = threadIdx.x; w < call.words; w += kThreads) shared.bits.word[w] = 0;
    block_barrier();
  }

  const unsigned int chosen = places_from(magnitude, bar) | (places_from(magnitude, bar - 1) & R::through(last, thread));
  load_row<kThreads, kVectors>(four, call.permutation, call.width, call.pieces, thread);  // there are registers for it or for the magnitudes
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const unsigned int columns_of[4] = {four[v].x, four[v].y, four[v].z, four[v].w};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool valid = columns_of[c] < static_cast<unsigned int>(call.width);
      if ((chosen >> (4 * v + c) & 1) != 0 && valid) set_bit(shared.bits, columns_of[c]);
    }
  }
  block_barrier();
  const int total = count_before(shared, call.words);
#pragma unroll 1
  for (int piece = threadIdx.x; piece < call.words / 4; piece += kThreads) {
    reinterpret_cast<uint4*>(mask)[piece] = reinterpret_cast<const uint4*>(shared.bits.word)[piece];
  }
#pragma unroll 4
  for (int w = warp; w < call.words; w += kThreads / kWarpLanes) {
    const int place = w * 32 + lane;
    if (bit_of(shared.bits, place)) columns[rank_of(shared.bits, place)] = place;
  }
#pragma unroll 1
  for (int j = total + threadIdx.x; j < call.k; j += kThreads) columns[j] = -1;  // the permutation repeats numbers
}

}  // namespace memoir
