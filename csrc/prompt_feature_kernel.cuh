// The mean over a prompt's tokens on a GPU: every 32 tokens of a column are summed one by one by one thread, and those sums in order by
// another, as the contract says; x is read once, in runs of 128 bytes of a token or more.
#pragma once

#include "block_sums.cuh"
#include "hash_calls.h"

namespace memoir {

constexpr int kBlockTokens = 32;      // tokens summed one by one before their sum joins the total
constexpr int kFeatureThreads = 256;
constexpr int kInFlight = 8;          // loads of a thread before the first is used
// A load behind a branch of its own would wait for the one before: past the end of a row, its last element stands in.

template <class T>
DEVICE void unpack_piece(const uint4& piece, float* value);
template <>
DEVICE void unpack_piece<float>(const uint4& piece, float* value) {
  value[0] = float_of_bits(piece.x), value[1] = float_of_bits(piece.y);
  value[2] = float_of_bits(piece.z), value[3] = float_of_bits(piece.w);
}
template <class T>
DEVICE void unpack_piece(const uint4& piece, float* value) {
  const unsigned int words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = to_float(T{static_cast<uint16_t>(words[i])});
    value[2 * i + 1] = to_float(T{static_cast<uint16_t>(words[i] >> 16)});
  }
}

// kPieces threads read one token together; the others of the block have further blocks of tokens.
template <class T, int kPieces>
struct FeatureShared {
  static constexpr int kColumns = kPieces * 16 / static_cast<int>(sizeof(T));
  static constexpr int kTokenBlocks = kFeatureThreads / kPieces;
  static constexpr int kTurnTokens = kTokenBlocks * kBlockTokens;
  float sums[kTokenBlocks][kColumns];
  unsigned char marked[kTurnTokens];
  BlockSums<kFeatureThreads> counts;
};

// Grid: a block for every kColumns columns of a sequence.
template <class T, int kPieces>
GLOBAL LAUNCH_BOUNDS(kFeatureThreads, sizeof(T) == 4 ? 4 : 3) void feature_columns(const FeatureCall call, int tiles) {
  constexpr int kValues = 16 / static_cast<int>(sizeof(T));
  using Shared = FeatureShared<T, kPieces>;
  constexpr int kColumns = Shared::kColumns, kTurnTokens = Shared::kTurnTokens;
  SHARED_ALIGNED(16) Shared shared;
  const int64_t sequence = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles, thread = threadIdx.x;
  const int piece = thread % kPieces, token_block = thread / kPieces;
  const int column = tile * kColumns + piece * kValues;
  wait_for_predecessors();
  admit_successor();

  // The prompt's first token, and how many it has.
  const bool* marked = call.marked + sequence * call.marked_batch;
  int least = call.tokens, own = 0;
#pragma unroll 1
  for (int s = thread; s < call.tokens; s += kInFlight * kFeatureThreads) {
    bool holds[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int token = s + i * kFeatureThreads;
      holds[i] = marked[(token < call.tokens ? token : call.tokens - 1) * call.marked_token];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int token = s + i * kFeatureThreads;
      const bool counts = holds[i] && token < call.tokens;
      least = counts && token < least ? token : least;
      own += counts;
    }
  }
  const int first = call.tokens - shared.counts.largest(call.tokens - least);
  const int count = shared.counts.sum(own, 0);

  const T* x = static_cast<const T*>(call.x) + sequence * call.x_batch + column;
  const bool whole = column + kValues <= call.width;
  constexpr int kOwn = (kColumns + kFeatureThreads - 1) / kFeatureThreads;  // columns that a thread adds up
  float total[kOwn] = {}, mu[kOwn] = {};
#pragma unroll 1
  for (int start = first; start < call.tokens; start += kTurnTokens) {
    const int own_thread = anew(thread);
    constexpr int kMarks = (kTurnTokens + kFeatureThreads - 1) / kFeatureThreads;
    bool holds[kMarks];
#pragma unroll
    for (int i = 0; i < kMarks; ++i) {
      const int token = start + own_thread + i * kFeatureThreads;
      holds[i] = marked[(token < call.tokens ? token : call.tokens - 1) * call.marked_token];
    }
    block_barrier();  // everybody has left the turn before
#pragma unroll
    for (int i = 0; i < kMarks; ++i) {
      const int place = own_thread + i * kFeatureThreads;
      if (place < kTurnTokens) shared.marked[place] = holds[i] && start + place < call.tokens;
    }
    block_barrier();
    float sum[kValues] = {};
#pragma unroll 1
    for (int step = 0; step < kBlockTokens; step += kInFlight) {
      if (start + token_block * kBlockTokens + step >= call.tokens) break;
      uint4 pieces[kInFlight];
      unsigned int used = 0;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int place = token_block * kBlockTokens + step + i;
        pieces[i] = uint4{};
        if (shared.marked[place] == 0 || column >= call.width) continue;
        const T* from = x + (start + place) * call.x_token;
        used |= 1u << i;
        if (whole) {
          pieces[i] = load_streaming(reinterpret_cast<const uint4*>(from));
        } else {
          copy_some(pieces[i], from, call.width - column);
        }
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if ((used >> i & 1) == 0) continue;
        float value[kValues];
        unpack_piece<T>(pieces[i], value);
#pragma unroll
        for (int c = 0; c < kValues; ++c) sum[c] += value[c];
      }
    }
#pragma unroll
    for (int c = 0; c < kValues; ++c) shared.sums[token_block][piece * kValues + c] = sum[c];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {  // here since it takes registers, and each turn until the last for nothing
      const int own_column = tile * kColumns + anew(thread) + i * kFeatureThreads;
      mu[i] = call.mu[(own_column < call.width ? own_column : call.width - 1) * call.mu_step];
    }
    block_barrier();
    const int left = (call.tokens - start + kBlockTokens - 1) / kBlockTokens;
    const int blocks = left < Shared::kTokenBlocks ? left : Shared::kTokenBlocks;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (thread + i * kFeatureThreads >= kColumns) continue;
#pragma unroll 4
      for (int b = 0; b < blocks; ++b) total[i] += shared.sums[b][thread + i * kFeatureThreads];
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int own_column = tile * kColumns + thread + i * kFeatureThreads;
    if (thread + i * kFeatureThreads >= kColumns || own_column >= call.width) continue;
    call.feature[sequence * call.width + own_column] =
        minus(divided(total[i], static_cast<float>(count)), mu[i]);
  }
}

}  // namespace memoir
