"""Triton kernel that copies each sequence's active inputs, for one dense pass over all of memory."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels._common import power_of_two


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
    BLOCK_K: tl.constexpr,
):
    """Grid (M, k tiles): the active inputs of one token row, at their own places."""
    m = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    b = m // S
    edit = tl.load(route_ptr + b * stride_r).to(tl.int64)
    if (edit < 0) | (edit >= C):
        return
    c = tl.load(columns_ptr + edit * stride_cc + j.to(tl.int64) * stride_ck, mask=j < k, other=-1)
    inside = (c >= 0) & (c < D)
    x = tl.load(x_ptr + b * stride_xb + (m % S) * stride_xs + c.to(tl.int64) * stride_xd, mask=inside, other=0.0)
    tl.store(active_ptr + m * stride_am + c, x, mask=inside)


def active_inputs(x: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """x [B, S, D] with zeros for inactive inputs, and for sequences without a route."""
    batch, tokens, width = x.shape
    edits, k = columns.shape
    active = torch.zeros((batch, tokens, width), dtype=x.dtype, device=x.device)
    block = power_of_two(k, 16, 1024)
    _gather[(batch * tokens, triton.cdiv(k, block))](
        active,
        x,
        columns,
        route,
        tokens,
        width,
        k,
        edits,
        width,
        *x.stride(),
        *columns.stride(),
        *route.stride(),
        BLOCK_K=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return active
