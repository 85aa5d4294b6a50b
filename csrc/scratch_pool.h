// Who gets which part of a pool of memory that every user leaves as it was found, at zero.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

namespace memoir {

// Positions in the pool of one device, in 64-bit words; nothing is ever given back.
class ScratchPool {
 public:
  static constexpr int64_t kWords = 1 << 19;  // 4 MiB
  static constexpr int64_t kNone = -1;

  // Kernels of one stream follow each other, so they share a place, one per size. `stream` is a number that no other
  // stream ever has.
  int64_t of_stream(uint64_t stream, int64_t words) {
    int size = 8;
    while (int64_t{1} << size < words) ++size;
    const auto found = of_streams_.find({stream, size});
    if (found != of_streams_.end()) return found->second;
    const int64_t own = take(int64_t{1} << size);
    if (own != kNone) of_streams_[{stream, size}] = own;
    return own;
  }

  // A captured call may run beside those of any stream; launches of its graph follow each other, so it has a place of
  // its own for good.
  int64_t of_captured_call(int64_t words) { return take(words); }

 private:
  static constexpr int64_t kLineWords = 16;  // 128 bytes: no two places share a line

  int64_t take(int64_t words) {
    const int64_t whole = (words + kLineWords - 1) / kLineWords * kLineWords;
    if (whole > kWords - used_) return kNone;
    used_ += whole;
    return used_ - whole;
  }

  int64_t used_ = 0;
  std::map<std::pair<uint64_t, int>, int64_t> of_streams_;
};

}  // namespace memoir
