"""Triton kernel of the residual product for some tokens per sequence: tiles of one sequence on the tensor cores."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import dot, power_of_two
from memoir_fast.kernels._pages import column_of, page_of


@triton.jit
def _prefill(
    out_ptr,
    x_ptr,
    memory_ptr,
    columns_ptr,
    route_ptr,
    S,
    D,
    outputs,
    k,
    C,
    R,
    stride_ob,
    stride_os,
    stride_oo,
    stride_xb,
    stride_xs,
    stride_xd,
    stride_wd,
    stride_wo,
    stride_cc,
    stride_ck,
    stride_r,
    ADD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (O tiles, S tiles, B): a tile of one sequence's tokens, gathered as it is loaded, times rows of memory."""
    b = tl.program_id(2).to(tl.int64)
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    edit = tl.load(route_ptr + b * stride_r).to(tl.int64)
    inside_out = (s < S)[:, None] & (o < outputs)[None, :]
    out_ptr += b * stride_ob + s[:, None].to(tl.int64) * stride_os + o[None, :].to(tl.int64) * stride_oo
    if (edit < 0) | (edit >= C):
        if not ADD:
            tl.store(out_ptr, tl.zeros((BLOCK_S, BLOCK_O), out_ptr.dtype.element_ty), mask=inside_out)
        return

    columns_ptr += edit * stride_cc
    x_ptr += b * stride_xb + s[:, None].to(tl.int64) * stride_xs
    page = page_of(columns_ptr, D, R)
    memory_ptr += page.to(tl.int64) * stride_wd + o[None, :].to(tl.int64) * stride_wo
    acc = tl.zeros((BLOCK_S, BLOCK_O), tl.float32)
    for start in range(0, k, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        c = tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < k, other=-1)
        c = column_of(c, page, D)
        inside = c >= 0
        x = tl.load(x_ptr + c[None, :].to(tl.int64) * stride_xd, mask=(s < S)[:, None] & inside[None, :], other=0.0)
        weight = tl.load(
            memory_ptr + c[:, None].to(tl.int64) * stride_wd, mask=inside[:, None] & (o < outputs)[None, :], other=0.0
        )
        acc = dot(x, weight, acc)
    if ADD:
        acc += tl.load(out_ptr, mask=inside_out, other=0.0).to(tl.float32)
    tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=inside_out)


def launch(
    out: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor, add: bool
) -> None:
    """Writes the product to out [B, S, O], or adds it."""
    batch, tokens, width = x.shape
    outputs = memory.shape[1]
    edits, k = columns.shape
    config = _launch.config("masked_linear_fused", x, f"k{k} O{outputs}")
    block_s = power_of_two(tokens, 16, config["BLOCK_S"])
    block_o = power_of_two(outputs, 16, config["BLOCK_O"])
    _prefill[(triton.cdiv(outputs, block_o), triton.cdiv(tokens, block_s), batch)](
        out,
        x,
        memory,
        columns,
        route,
        tokens,
        width,
        outputs,
        k,
        edits,
        len(memory),
        *out.stride(),
        *x.stride(),
        *memory.stride(),
        *columns.stride(),
        *route.stride(),
        ADD=add,
        BLOCK_S=block_s,
        BLOCK_K=config["BLOCK_K"],
        BLOCK_O=block_o,
        **_launch.options(config),
    )
