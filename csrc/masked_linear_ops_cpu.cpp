// masked_linear and its in-place form as CPU ops: tokens that follow the same edit share one pass over its rows.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "masked_linear_checks.h"
#include "masked_linear_cpu.h"
#include "parallel.h"
#include "registry.h"

namespace memoir {
namespace {

constexpr int64_t kChunk = 4096;        // outputs of one unit of work: their sums fit in the first-level cache
constexpr int64_t kSmallestChunk = 256;  // outputs that are still worth a thread

// The sequences that follow one edit.
struct Group {
  const int32_t* columns;  // rows of memory
  int32_t page;            // the first row of theirs
  std::vector<int64_t> rows;
};

std::vector<Group> group_by_route(const Tensor& columns, const Tensor& route, int64_t width, int64_t memory_rows) {
  const auto* list = static_cast<const int32_t*>(columns.const_data_ptr());
  const auto* routes = static_cast<const int32_t*>(route.const_data_ptr());
  const int64_t batch = route.size(0), step = route.stride(0), edits = columns.size(0), k = columns.size(1);
  std::vector<int64_t> order(batch);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [=](int64_t a, int64_t b) { return routes[a * step] < routes[b * step]; });

  std::vector<Group> groups;
  int64_t last = -1;
  for (int64_t row : order) {
    const int64_t edit = routes[row * step];
    require(-1 <= edit && edit < edits, "route must lie in [-1, C = ", edits, "), got ", edit);
    if (edit < 0) continue;
    if (edit != last) {
      const int32_t* own = list + edit * columns.stride(0);
      const int64_t page = own[0] < 0 ? 0 : own[0] - own[0] % width;
      for (int64_t i = 0; i < k; ++i) {
        require(0 <= own[i] && own[i] < memory_rows, "columns must lie in [0, ", memory_rows, "), edit ", edit, " has ",
                own[i]);
        require(page <= own[i] && own[i] < page + width, "columns of an edit must lie on one page of D = ", width,
                " rows, edit ", edit, " has ", own[0], " and ", own[i]);
      }
      groups.push_back({own, static_cast<int32_t>(page), {}});
      last = edit;
    }
    groups.back().rows.push_back(row);
  }
  return groups;
}

// What one call works on; `y` is both read (where `adding`) and written.
template <class T>
struct Problem {
  using S = typename Wide<T>::type;

  const T* x;
  const T* memory;
  T* y;
  int64_t k, tokens, outputs;
  int64_t x_stride[3], y_stride[3], memory_stride;
  bool adding;

  // Tokens are numbered through the sequences of a group.
  T* out(const Group& group, int64_t token) const {
    return y + group.rows[token / tokens] * y_stride[0] + token % tokens * y_stride[1];
  }

  // The inputs at the active columns, widened: [tiles][k][kTokens].
  std::vector<S> gather(const Group& group) const {
    const int64_t count = static_cast<int64_t>(group.rows.size()) * tokens;
    std::vector<S> scale((count + kTokens - 1) / kTokens * k * kTokens, 0);
    for (int64_t token = 0; token < count; ++token) {
      const T* from = x + group.rows[token / tokens] * x_stride[0] + token % tokens * x_stride[1];
      S* to = scale.data() + token / kTokens * k * kTokens + token % kTokens;
      for (int64_t i = 0; i < k; ++i) to[i * kTokens] = widen(from[(group.columns[i] - group.page) * x_stride[2]]);
    }
    return scale;
  }

  void chunk(const Group& group, const std::vector<S>& scale, int64_t begin, int64_t end) const {
    const int64_t count = static_cast<int64_t>(group.rows.size()) * tokens, length = end - begin;
    std::vector<S> sum(kTokens * length);
    for (int64_t first = 0; first < count; first += kTokens) {
      const int64_t used = std::min(kTokens, count - first);
      row_sums(memory + begin, memory_stride, group.columns, k, scale.data() + first * k, used, length, sum.data(),
               length);
      for (int64_t t = 0; t < used; ++t) {
        T* to = out(group, first + t) + begin * y_stride[2];
        const S* from = sum.data() + t * length;
        for (int64_t o = 0; o < length; ++o) {
          T& element = to[o * y_stride[2]];
          element = narrow<T>(adding ? widen(element) + from[o] : from[o]);
        }
      }
    }
  }
};

template <class T>
void run(const Tensor& y, const Tensor& x, const Tensor& memory, const std::vector<Group>& groups, int64_t k,
         bool adding) {
  const Problem<T> problem{static_cast<const T*>(x.const_data_ptr()),
                           static_cast<const T*>(memory.const_data_ptr()),
                           static_cast<T*>(y.mutable_data_ptr()),
                           k,
                           x.size(1),
                           memory.size(1),
                           {x.stride(0), x.stride(1), x.stride(2)},
                           {y.stride(0), y.stride(1), y.stride(2)},
                           memory.stride(0),
                           adding};
  if (problem.outputs == 0 || problem.tokens == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = (problem.outputs + threads - 1) / threads;
  const int64_t length = std::clamp((share + 63) / 64 * 64, kSmallestChunk, kChunk);
  const int64_t chunks = (problem.outputs + length - 1) / length;
  for (const Group& group : groups) {
    const auto scale = problem.gather(group);
    spread(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        problem.chunk(group, scale, chunk * length, std::min((chunk + 1) * length, problem.outputs));
      }
    });
  }
}

void dispatch(const Tensor& y, const Tensor& x, const Tensor& memory, const std::vector<Group>& groups, int64_t k,
              bool adding) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run<double>(y, x, memory, groups, k, adding);
    case ScalarType::Float:
      return run<float>(y, x, memory, groups, k, adding);
    case ScalarType::Half:
      return run<Half>(y, x, memory, groups, k, adding);
    default:
      return run<BFloat16>(y, x, memory, groups, k, adding);
  }
}

Tensor masked_linear(const Tensor& x, const Tensor& memory, const Tensor& columns_in, const Tensor& route) {
  require_linear(x, memory, columns_in, route);
  const Tensor columns = with_dense_rows(columns_in);
  const auto groups = group_by_route(columns, route, x.size(2), memory.size(0));
  const Tensor y = torch::stable::new_zeros(x, {x.size(0), x.size(1), memory.size(1)});
  if (!groups.empty()) dispatch(y, x, with_dense_rows(memory), groups, columns.size(1), false);
  return y;
}

void masked_linear_add_(const Tensor& base, const Tensor& x, const Tensor& memory, const Tensor& columns_in,
                        const Tensor& route) {
  require_linear(x, memory, columns_in, route);
  require_base(base, x, memory);
  const Tensor columns = with_dense_rows(columns_in);
  const auto groups = group_by_route(columns, route, x.size(2), memory.size(0));
  if (!groups.empty()) dispatch(base, x, with_dense_rows(memory), groups, columns.size(1), true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(memoir_fast_native, CPU, m) {
  MEMOIR_IMPLEMENTS(m, "cpu", masked_linear);
  MEMOIR_IMPLEMENTS(m, "cpu", masked_linear_add_);
}

}  // namespace memoir
