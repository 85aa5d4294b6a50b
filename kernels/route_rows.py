"""Triton kernel of `route_rows`: one launch, a program per sequence."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._columns import blocks, list_columns
from memoir_fast.kernels._common import on_device_of, unsupported

__all__ = ["route_rows", "unsupported"]


@triton.jit
def _route_rows(
    rows_ptr,
    first_ptr,
    mask_ptr,
    page_ptr,
    route_ptr,
    C,
    W,
    k,
    width,
    stride_mc,
    stride_mw,
    stride_p,
    stride_r,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Grid (B,)."""
    sequence = tl.program_id(0)
    route = tl.load(route_ptr + sequence.to(tl.int64) * stride_r)
    there = route < C
    edit = tl.where(there & (route > 0), route, 0).to(tl.int64)
    base = tl.where(there, tl.load(page_ptr + edit * stride_p) * width, 0)
    list_columns(
        rows_ptr + sequence.to(tl.int64) * k,
        mask_ptr + edit * stride_mc,
        tl.where(there, W, 0),
        k,
        base,
        stride_mw,
        BLOCK_W,
        BLOCK_K,
    )
    first = sequence
    for start in range(0, sequence, BLOCK_B):
        other = start + tl.arange(0, BLOCK_B)
        before = other < sequence
        same = before & (tl.load(route_ptr + other.to(tl.int64) * stride_r, mask=before, other=-1) == route)
        first = tl.minimum(first, tl.min(tl.where(same, other, sequence), axis=0))
    tl.store(first_ptr + sequence, tl.where(there & (route >= 0), first, -1))


def route_rows(
    mask: torch.Tensor, page: torch.Tensor, route: torch.Tensor, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.route_rows`."""
    batch, words = route.shape[0], mask.shape[1]
    rows = torch.empty((batch, k), dtype=torch.int32, device=mask.device)
    first = torch.empty((batch,), dtype=torch.int32, device=mask.device)
    if batch == 0:
        return rows, first
    config = _launch.config("route_rows", mask, f"W{words}")
    with on_device_of(mask):
        _route_rows[(batch,)](
            rows,
            first,
            mask,
            page,
            route,
            mask.shape[0],
            words,
            k,
            width,
            *mask.stride(),
            page.stride(0),
            route.stride(0),
            **blocks(words),
            BLOCK_B=128,
            **_launch.options(config),
        )
    return rows, first
