"""The columns of one mask, listed within a Triton kernel."""

import triton
import triton.language as tl
from memoir_fast.kernels._common import popcount, power_of_two

_WORDS = 128  # words of the mask unpacked at a time


def blocks(words: int) -> dict[str, int]:
    """The sizes that `list_columns` is compiled for, at masks of so many words."""
    return {"BLOCK_W": power_of_two(words, 4, _WORDS), "BLOCK_K": 1024}


@triton.jit
def list_columns(columns_ptr, mask_ptr, W, k, base, stride_mw, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr):
    """Lists the first k set bits of one mask of W words, `base` added to each; behind the last stands base - 1."""
    bit = tl.arange(0, 32)[None, :]
    single = tl.full((1, 32), 1, tl.int32) << bit
    seen = W * 0
    for start in range(0, W, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)
        packed = tl.load(mask_ptr + word.to(tl.int64) * stride_mw, mask=word < W, other=0)
        count = popcount(packed)
        before = seen + tl.cumsum(count, axis=0) - count
        rank = before[:, None] + popcount(packed[:, None] & (single - 1))
        column = base + word[:, None] * 32 + bit
        holds = ((packed[:, None] >> bit) & 1) != 0
        tl.store(columns_ptr + rank, column, mask=holds & (rank < k))
        seen += tl.sum(count, axis=0)
    for start in range(0, k, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        tl.store(columns_ptr + j, tl.zeros((BLOCK_K,), tl.int32) + (base - 1), mask=(j >= seen) & (j < k))
