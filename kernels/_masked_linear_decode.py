"""Triton kernels of the residual product for few tokens per sequence: one row, or tiles of rows grouped by route."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import dot, power_of_two
from memoir_fast.kernels._masked_linear_gather import active_inputs
from memoir_fast.kernels._pages import column_of, page_of

_ROWS = 16  # rows of one tile: the smallest tensor-core tile


@triton.jit
def _columns(columns_ptr, start, end, page, D, stride_ck, BLOCK_K: tl.constexpr):
    """The active columns from `start` to `end` [BLOCK_K]; -1 for what is no row of the page, and past the end."""
    j = start + tl.arange(0, BLOCK_K)
    return column_of(tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < end, other=-1), page, D)


@triton.jit
def _step(x_ptr, memory_ptr, c, o, outputs, stride_xd, stride_wd):
    """One row's inputs at columns c [BLOCK_K], and those rows of memory [BLOCK_K, BLOCK_O]; zeros where c is -1."""
    x = tl.load(x_ptr + c.to(tl.int64) * stride_xd, mask=c >= 0, other=0.0)
    row = c[:, None]
    weight = tl.load(memory_ptr + row.to(tl.int64) * stride_wd, mask=(row >= 0) & (o < outputs)[None, :], other=0.0)
    return x, weight


@triton.jit
def _one(
    out_ptr,
    partial_ptr,
    x_ptr,
    memory_ptr,
    columns_ptr,
    route_ptr,
    D,
    outputs,
    k,
    C,
    R,
    stride_oo,
    stride_xd,
    stride_wd,
    stride_wo,
    stride_cc,
    stride_ck,
    ADD: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (O tiles, SPLITS) for B = S = 1: a tile of outputs, a split of the active columns."""
    split = tl.program_id(1)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    out_ptr += o.to(tl.int64) * stride_oo
    edit = tl.load(route_ptr).to(tl.int64)
    if (edit < 0) | (edit >= C):
        if not ADD and SPLITS == 1:
            tl.store(out_ptr, tl.zeros((BLOCK_O,), out_ptr.dtype.element_ty), mask=o < outputs)
        return

    memory_ptr += o[None, :].to(tl.int64) * stride_wo
    columns_ptr += edit * stride_cc
    page = page_of(columns_ptr, D, R)
    memory_ptr += page.to(tl.int64) * stride_wd
    share = tl.cdiv(tl.cdiv(k, SPLITS), BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, k)
    # One step ahead in flight: the next step's rows of memory are asked for before this step's are used.
    c = _columns(columns_ptr, begin, end, page, D, stride_ck, BLOCK_K)
    x, weight = _step(x_ptr, memory_ptr, c, o, outputs, stride_xd, stride_wd)
    c = _columns(columns_ptr, begin + BLOCK_K, end, page, D, stride_ck, BLOCK_K)
    acc = tl.zeros((BLOCK_K, BLOCK_O), tl.float32)
    for start in range(begin, end, BLOCK_K):
        x_next, weight_next = _step(x_ptr, memory_ptr, c, o, outputs, stride_xd, stride_wd)
        c = _columns(columns_ptr, start + 2 * BLOCK_K, end, page, D, stride_ck, BLOCK_K)
        acc += x.to(tl.float32)[:, None] * weight.to(tl.float32)
        x = x_next
        weight = weight_next
    y = tl.sum(acc, axis=0)

    if SPLITS > 1:
        tl.store(partial_ptr + split * outputs + o, y, mask=o < outputs)
    else:
        if ADD:
            y += tl.load(out_ptr, mask=o < outputs, other=0.0).to(tl.float32)
        tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=o < outputs)


@triton.jit
def _rows(
    out_ptr,
    partial_ptr,
    x_ptr,
    memory_ptr,
    columns_ptr,
    route_ptr,
    M,
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
    MAY_BE_DENSE: tl.constexpr,
    SPLITS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (O tiles * SPLITS * row tiles * SLOTS,): slot i of a tile serves all rows of the tile's i-th distinct route.

    In one dimension, since a packed batch has more tiles than the others may have. With MAY_BE_DENSE x holds zeros at
    inactive inputs (`active_inputs`), and slot 0 serves a tile of many routes alone.
    """
    o_tiles = tl.cdiv(outputs, BLOCK_O)
    place = tl.program_id(0) // o_tiles
    tile = place // SPLITS // SLOTS
    slot = place // SPLITS % SLOTS
    split = place % SPLITS
    index = tl.arange(0, ROWS)
    m = tile * ROWS + index
    b = (m // S).to(tl.int64)
    s = (m % S).to(tl.int64)
    route = tl.load(route_ptr + b * stride_r, mask=m < M, other=-1)
    route = tl.where((route >= 0) & (route < C), route, -1)

    # again[r]: an earlier row of the tile has row r's route. The transposed copy comes from memory: no layout change.
    same = route[:, None] == tl.trans(route[:, None])
    again = tl.max((same & (index[None, :] < index[:, None])).to(tl.int32), axis=1)
    leads = (again == 0) & (m < M)
    order = tl.cumsum(leads.to(tl.int32), axis=0) - 1
    mine = tl.max(tl.where(leads & (order == slot), route, -2), axis=0)
    dense = False
    if MAY_BE_DENSE:
        dense = tl.sum((leads & (route >= 0)).to(tl.int32), axis=0) * k >= D
    if dense:
        if slot > 0:
            return
        member = m < M
    else:
        member = (m < M) & (route == mine)
    if mine == -2:
        return
    o = tl.program_id(0) % o_tiles * BLOCK_O + tl.arange(0, BLOCK_O)

    acc = tl.zeros((ROWS, BLOCK_O), tl.float32)
    if dense | (mine >= 0):
        columns_ptr += tl.maximum(mine, 0).to(tl.int64) * stride_cc
        page = page_of(columns_ptr, D, R)
        memory_ptr += page.to(tl.int64) * stride_wd
        length = tl.where(dense, D, k)
        share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_K) * BLOCK_K
        begin = split * share
        end = tl.minimum(begin + share, length)
        x_rows = x_ptr + (b * stride_xb + s * stride_xs)[:, None]
        for start in range(begin, end, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            c = tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=(j < end) & (not dense), other=-1)
            c = tl.where(dense & (j < end), j, column_of(c, page, D))
            inside = c >= 0
            x = tl.load(x_rows + c[None, :].to(tl.int64) * stride_xd, mask=member[:, None] & inside[None, :], other=0.0)
            weight = tl.load(
                memory_ptr + c[:, None].to(tl.int64) * stride_wd + o[None, :].to(tl.int64) * stride_wo,
                mask=inside[:, None] & (o < outputs)[None, :],
                other=0.0,
            )
            acc = dot(x, weight, acc)

    routed = member & (route >= 0)
    acc = tl.where(routed[:, None], acc, 0.0)
    inside = (o < outputs)[None, :]
    if SPLITS > 1:
        partial_ptr += (split.to(tl.int64) * M + m)[:, None] * outputs + o[None, :]
        tl.store(partial_ptr, acc, mask=routed[:, None] & inside)
    else:
        out_ptr += (b * stride_ob + s * stride_os)[:, None] + o[None, :].to(tl.int64) * stride_oo
        if ADD:
            acc += tl.load(out_ptr, mask=routed[:, None] & inside, other=0.0).to(tl.float32)
            tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=routed[:, None] & inside)
        else:
            tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=member[:, None] & inside)


@triton.jit
def _combine(
    out_ptr, partial_ptr, route_ptr, M, S, outputs, C, stride_ob, stride_os, stride_oo, stride_r,
    ADD: tl.constexpr, SPLITS: tl.constexpr, BLOCK_O: tl.constexpr
):  # fmt: skip
    """Grid (M, O tiles): adds a row's splits up in order, then the base, and rounds once."""
    m = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    b = m // S
    out_ptr += b * stride_ob + (m % S) * stride_os + o.to(tl.int64) * stride_oo
    edit = tl.load(route_ptr + b * stride_r)
    if (edit < 0) | (edit >= C):
        if not ADD:
            tl.store(out_ptr, tl.zeros((BLOCK_O,), out_ptr.dtype.element_ty), mask=o < outputs)
        return
    y = tl.zeros((BLOCK_O,), tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(partial_ptr + (m + tl.full((), split, tl.int64) * M) * outputs + o, mask=o < outputs, other=0.0)
    if ADD:
        y += tl.load(out_ptr, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=o < outputs)


def launch(
    out: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor, add: bool
) -> None:
    """Writes the product to out [B, S, O], or adds it."""
    batch, tokens, width = x.shape
    outputs = memory.shape[1]
    edits, k = columns.shape
    rows = batch * tokens
    config = _launch.config("masked_linear_one" if rows == 1 else "masked_linear_rows", x, f"k{k} O{outputs}")
    splits = config["SPLITS"]
    block_o = power_of_two(outputs, 16, config["BLOCK_O"])
    block_k = power_of_two(k, 16, config["BLOCK_K"])
    tiles = triton.cdiv(outputs, block_o)
    partial = torch.empty((splits, rows, outputs) if splits > 1 else 1, dtype=torch.float32, device=x.device)
    slots = min(_ROWS, batch)  # no tile can hold more routes
    may_be_dense = rows > 1 and slots * k >= width and len(memory) == width
    if may_be_dense:
        x = active_inputs(x, columns, route)
    tensors = (out, partial, x, memory, columns, route)
    constants = {"ADD": add, "SPLITS": splits, "BLOCK_K": block_k, "BLOCK_O": block_o, **_launch.options(config)}
    if rows == 1:
        strides = (out.stride(2), x.stride(2), *memory.stride(), *columns.stride())
        _one[(tiles, splits)](*tensors, width, outputs, k, edits, len(memory), *strides, **constants)
    else:
        sizes = (rows, tokens, width, outputs, k, edits, len(memory))
        strides = (*out.stride(), *x.stride(), *memory.stride(), *columns.stride(), *route.stride())
        _rows[(tiles * splits * triton.cdiv(rows, _ROWS) * slots,)](
            *tensors, *sizes, *strides, MAY_BE_DENSE=may_be_dense, SLOTS=slots, ROWS=_ROWS, **constants
        )
    if splits > 1:
        block = power_of_two(outputs, 16, 256)
        _combine[(rows, triton.cdiv(outputs, block))](
            out,
            partial,
            route,
            rows,
            tokens,
            outputs,
            edits,
            *out.stride(),
            *route.stride(),
            ADD=add,
            SPLITS=splits,
            BLOCK_O=block,
            num_warps=2,
            enable_fp_fusion=True,
        )
