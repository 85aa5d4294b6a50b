"""Triton kernel of `mask_columns`: one launch, a program per mask."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._columns import blocks, list_columns
from memoir_fast.kernels._common import on_device_of, unsupported

__all__ = ["mask_columns", "unsupported"]


@triton.jit
def _mask_columns(columns_ptr, mask_ptr, W, k, stride_mb, stride_mw, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr):
    """Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    list_columns(columns_ptr + row * k, mask_ptr + row * stride_mb, W, k, 0, stride_mw, BLOCK_W, BLOCK_K)


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
            **blocks(words),
            **_launch.options(config),
        )
    return columns
