// FlashInfer's exact top-k alone, as its own `top_k` chooses within a CUDA graph: CUB's for few rows, its radix select
// for many. A C function, so that it is built in seconds against headers and called without a Python package.
#define CUB_DISABLE_TOPK_UNSUPPORTED_ARCH_ASSERT
#include <cuda/__execution/determinism.h>
#include <cuda/__execution/output_ordering.h>
#include <cuda/__execution/require.h>
#include <cuda/__execution/tie_break.h>
#include <cuda/std/__execution/env.h>

#include <cub/device/device_batched_topk.cuh>
#include <cuda/argument>
#include <cuda/iterator>
#include <flashinfer/math.cuh>  // topk.cuh uses it and does not include it
#include <flashinfer/topk.cuh>

namespace {

constexpr std::int64_t kMostColumns = std::int64_t{1} << 21;  // CUB's own limit
constexpr std::int64_t kFewRows = 128;

cudaError_t few(const float* scores, std::int64_t rows, std::int64_t columns, std::int64_t k, std::int32_t* indices,
                float* values, void* scratch, std::size_t* scratch_bytes, cudaStream_t stream) {
    namespace exec = cuda::execution;
    const auto row_of = [](auto* start, std::int64_t stride) {
        return cuda::make_strided_iterator(cuda::make_counting_iterator(start), stride);
    };
    const auto wanted = exec::require(exec::determinism::not_guaranteed, exec::tie_break::unspecified,
                                      exec::output_ordering::unsorted);
    return cub::DeviceBatchedTopK::MaxPairs(
        scratch, *scratch_bytes, row_of(scores, columns), row_of(values, k),
        cuda::make_constant_iterator(cuda::make_counting_iterator(std::int32_t{0})), row_of(indices, k),
        cuda::args::immediate{columns, cuda::args::bounds<std::int64_t{1}, kMostColumns>()},
        cuda::args::immediate{k, cuda::args::bounds<std::int64_t{1}, kMostColumns>()},
        cuda::args::immediate{rows}, cuda::std::execution::env{wanted, cuda::stream_ref{stream}});
}

}  // namespace

// scores float [rows, columns] -> indices int32 and values float [rows, k], in no order. Without scratch it says only how
// much it needs; scratch is zero before the first call. Returns a cudaError_t.
extern "C" int flashinfer_topk(float* scores, std::int64_t rows, std::int64_t columns, std::int64_t k,
                               std::int32_t* indices, float* values, void* scratch, std::size_t* scratch_bytes,
                               void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    if (rows < kFewRows) return few(scores, rows, columns, k, indices, values, scratch, scratch_bytes, on);
    if (scratch == nullptr) {
        *scratch_bytes = std::size_t{1} << 20;
        return cudaSuccess;
    }
    return flashinfer::sampling::TopKDispatch<float, std::int32_t>(
        scores, indices, values, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(k),
        static_cast<std::uint32_t>(columns), static_cast<flashinfer::sampling::RadixRowState*>(scratch),
        /*sorted_output=*/false, /*deterministic=*/false, flashinfer::sampling::TopKTieBreak::None, on);
}
