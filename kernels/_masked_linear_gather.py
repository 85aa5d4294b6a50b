"""Triton kernel that copies each sequence's active inputs, for the forms of `masked_linear` that read them often."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels._common import power_of_two

_ALIGNMENT = 16  # elements


@triton.jit
def _gather(
    active_ptr,
    x_ptr,
    columns_ptr,
    route_ptr,
    S,
    D,
    k,
    C,
    stride_am,
    stride_xb,
    stride_xs,
    stride_xd,
    stride_cc,
    stride_ck,
    stride_r,
    SIDE_BY_SIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (M, k tiles): the active inputs of one token row, packed or at their own places."""
    m = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    b = m // S
    edit = tl.load(route_ptr + b * stride_r).to(tl.int64)
    if (edit < 0) | (edit >= C):
        return
    c = tl.load(columns_ptr + edit * stride_cc + j.to(tl.int64) * stride_ck, mask=j < k, other=-1)
    inside = (c >= 0) & (c < D)
    x = tl.load(x_ptr + b * stride_xb + (m % S) * stride_xs + c.to(tl.int64) * stride_xd, mask=inside, other=0.0)
    if SIDE_BY_SIDE:
        tl.store(active_ptr + m * stride_am + j, x, mask=j < stride_am)
    else:
        tl.store(active_ptr + m * stride_am + c, x, mask=inside)


def active_inputs(x: torch.Tensor, columns: torch.Tensor, route: torch.Tensor, *, side_by_side: bool) -> torch.Tensor:
    """The active inputs of x [B, S, D]: packed, [B, S, k], or at their places among zeros, [B, S, D].

    Packed rows are filled up with zeros to a multiple of 16, so that they can be read 16 bytes at a time; those of a
    sequence without a route are left unwritten, and nothing reads them.
    """
    batch, tokens, width = x.shape
    edits, k = columns.shape
    shape = (batch, tokens, -(-k // _ALIGNMENT) * _ALIGNMENT if side_by_side else width)
    active = (torch.empty if side_by_side else torch.zeros)(shape, dtype=x.dtype, device=x.device)
    block = power_of_two(k, _ALIGNMENT, 1024)
    _gather[(batch * tokens, triton.cdiv(k, block))](
        active,
        x,
        columns,
        route,
        tokens,
        width,
        k,
        edits,
        shape[2],
        *x.stride(),
        *columns.stride(),
        *route.stride(),
        SIDE_BY_SIDE=side_by_side,
        BLOCK_K=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return active
