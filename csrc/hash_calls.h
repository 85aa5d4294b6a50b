// The arguments of the GPU kernels that hash, for a launcher that knows torch and kernels that do not.
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

constexpr int kWidestHash = 16384;  // a row stays in the registers of one block

struct HashCall {
  const float* feature;
  const int32_t* permutation;
  int32_t* mask;
  int32_t* columns;
  int64_t feature_row;  // from one row to the next
  int rows, width, k, words;
  int reach;    // where the search begins above the mean logarithm; see reach_of
  bool pieces;  // rows and permutation begin on 16-byte boundaries and hold whole pieces
  bool admit;   // the next kernel may begin to fetch what it needs meanwhile
};

// From the mean logarithm of exponentially distributed magnitudes to the one that k of them reach, in bit patterns.
int reach_of(int64_t k, int64_t width);

// The columns of masks, or of the masks of routes: then as rows of memory, on the page of the edit.
struct ColumnsCall {
  const int32_t* mask;
  int32_t* columns;
  int64_t mask_row;  // from one row to the next
  int rows, words, k;
  const int32_t* route;  // the mask of each row, or -1; nullptr: its own
  const int32_t* page;   // of each mask; this and what follows where there is a route
  int32_t* first;        // the first row of the same route, or -1
  int masks, width;      // width: of a page
};

// What a search among code rows found for prompts of so many codes each, and the edits of the rows.
struct CodesCall {
  const int32_t* row;
  const int32_t* overlap;
  const int32_t* owner;  // of each of the rows that are stored, one at least
  const int32_t* room;
  int32_t* route;
  int32_t* best;
  int prompts, codes, stored;
};

}  // namespace memoir
