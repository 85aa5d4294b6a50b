"""Triton kernels of the residual product for many tokens per sequence: active inputs are packed, then multiplied."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import dot, power_of_two
from memoir_fast.kernels._pages import column_of, page_of


@triton.jit(do_not_specialize=["stride_aj"])
def _pack(
    active_ptr, x_ptr, columns_ptr, route_ptr, S, D, k, C, R,
    stride_ab, stride_as, stride_aj, stride_xb, stride_xs, stride_xd, stride_cc, stride_ck, stride_r,
    ROWS: tl.constexpr, BLOCK_J: tl.constexpr
):  # fmt: skip
    """Grid (B, S tiles of ROWS, tiles of a packed row): a sequence's inputs, side by side in its columns' order.

    A column that is none gives 0, and so do the places behind the last one. Neighbouring threads take neighbouring
    columns, which share sectors; were stride_aj known to be 1, each would take as many as it can write at once.
    """
    b = tl.program_id(0).to(tl.int64)
    edit = tl.load(route_ptr + b * stride_r).to(tl.int64)
    if (edit < 0) | (edit >= C):
        return
    j = tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)
    columns_ptr += edit * stride_cc
    c = tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < k, other=-1)
    c = column_of(c, page_of(columns_ptr, D, R), D)
    s = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    inside = (c >= 0)[None, :] & (s < S)
    x = tl.load(x_ptr + b * stride_xb + s * stride_xs + c[None, :].to(tl.int64) * stride_xd, mask=inside, other=0.0)
    tl.store(
        active_ptr + b * stride_ab + s * stride_as + j[None, :] * stride_aj, x, mask=(j < stride_as)[None, :] & (s < S)
    )


@triton.jit
def _multiply(
    out_ptr, active_ptr, memory_ptr, columns_ptr, route_ptr, S, D, outputs, k, C, R, stride_ob, stride_os, stride_oo,
    stride_ab, stride_as, stride_wd, stride_wo, stride_cc, stride_ck, stride_r,
    ADD: tl.constexpr, WHOLE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr
):  # fmt: skip
    """Grid (O tiles, S tiles, B): a tile of one sequence's packed inputs times the active rows of memory.

    The next columns are read a step ahead: a load that another one needs would cost the pipeline a buffer. A column
    that is none meets zeros; the row of the first one stands in for it. WHOLE: no tile of outputs is cut off.
    """
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
    j = tl.arange(0, BLOCK_K)
    active_ptr += b * stride_ab + tl.minimum(s, S - 1)[:, None].to(tl.int64) * stride_as + j[None, :]
    page = page_of(columns_ptr, D, R)
    memory_ptr += page.to(tl.int64) * stride_wd + o[None, :].to(tl.int64) * stride_wo
    first = tl.maximum(column_of(tl.load(columns_ptr), page, D), 0)
    c = tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < k, other=-1)
    acc = tl.zeros((BLOCK_S, BLOCK_O), tl.float32)
    for start in range(0, k, BLOCK_K):
        c = column_of(c, page, D)
        row = tl.where(c >= 0, c, first)
        at = memory_ptr + row[:, None].to(tl.int64) * stride_wd
        weight = tl.load(at) if WHOLE else tl.load(at, mask=(o < outputs)[None, :], other=0.0)
        acc = dot(tl.load(active_ptr), weight, acc)
        active_ptr += BLOCK_K
        ahead = start + BLOCK_K + j
        c = tl.load(columns_ptr + ahead.to(tl.int64) * stride_ck, mask=ahead < k, other=-1)
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
    rows = power_of_two(batch * tokens, 128, 4096)
    config = _launch.config("masked_linear_prefill", x, f"k{k} O{outputs}", f"{rows} rows of {x.element_size()} bytes")
    block_s, block_o = power_of_two(tokens, 16, config["BLOCK_S"]), power_of_two(outputs, 16, config["BLOCK_O"])
    block_k = config["BLOCK_K"]
    packed = triton.cdiv(k, block_k) * block_k
    active = torch.empty((batch, tokens, packed), dtype=x.dtype, device=x.device)
    pack_rows, block_j = config["PACK_ROWS"], power_of_two(packed, 16, config["PACK_J"])
    _pack[(batch, triton.cdiv(tokens, pack_rows), triton.cdiv(packed, block_j))](
        active, x, columns, route, tokens, width, k, edits, len(memory), *active.stride(), *x.stride(),
        *columns.stride(), *route.stride(), ROWS=pack_rows, BLOCK_J=block_j, num_warps=config["PACK_WARPS"],
        enable_fp_fusion=True
    )  # fmt: skip
    _multiply[(triton.cdiv(outputs, block_o), triton.cdiv(tokens, block_s), batch)](
        out, active, memory, columns, route, tokens, width, outputs, k, edits, len(memory), *out.stride(),
        *active.stride()[:2], *memory.stride(), *columns.stride(), *route.stride(),
        ADD=add, WHOLE=outputs % block_o == 0, BLOCK_S=block_s, BLOCK_K=block_k, BLOCK_O=block_o,
        **_launch.options(config),
    )  # fmt: skip
