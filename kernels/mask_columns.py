"""Triton kernel of `mask_columns`: one launch, a program per mask."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, popcount, power_of_two, unsupported

__all__ = ["mask_columns", "unsupported"]

_WORDS = 128  # words of the mask unpacked at a time


@triton.jit
def _mask_columns(columns_ptr, mask_ptr, W, k, stride_mb, stride_mw, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr):
    """Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    mask_ptr += row * stride_mb
    columns_ptr += row * k
    bit = tl.arange(0, 32)[None, :]
    single = tl.full((1, 32), 1, tl.int32) << bit
    seen = W * 0
    for start in range(0, W, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)
        packed = tl.load(mask_ptr + word.to(tl.int64) * stride_mw, mask=word < W, other=0)
        count = popcount(packed)
        before = seen + tl.cumsum(count, axis=0) - count
        rank = before[:, None] + popcount(packed[:, None] & (single - 1))
        column = word[:, None] * 32 + bit
        holds = ((packed[:, None] >> bit) & 1) != 0
        tl.store(columns_ptr + rank, column, mask=holds & (rank < k))
        seen += tl.sum(count, axis=0)
    for start in range(0, k, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        tl.store(columns_ptr + j, tl.full((BLOCK_K,), -1, tl.int32), mask=(j >= seen) & (j < k))


def mask_columns(mask: torch.Tensor, k: int) -> torch.Tensor:
    """See `memoir_fast.ops.mask_columns`."""
    batch, words = mask.shape
    columns = torch.empty((batch, k), dtype=torch.int32, device=mask.device)
    if batch == 0:
        return columns
    config = _launch.config("mask_columns", mask, f"W{words}")
    with on_device_of(mask):
        _mask_columns[(batch,)](
            columns,
            mask,
            words,
            k,
            *mask.stride(),
            BLOCK_W=power_of_two(words, 4, _WORDS),
            BLOCK_K=1024,
            **_launch.options(config),
        )
    return columns
