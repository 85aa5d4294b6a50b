// One call of mask_columns on a GPU, for a launcher that knows torch and a kernel that does not.
#pragma once

#include <cstdint>

namespace memoir {

struct ColumnsCall {
  const int32_t* mask;
  int32_t* columns;
  int64_t mask_row;  // from one row to the next
  int rows, words, k;
};

}  // namespace memoir
