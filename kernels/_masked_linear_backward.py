"""Triton kernels of the residual product's gradient: to x, and to the active rows of memory."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import dot, on_device_of, power_of_two
from memoir_fast.kernels._pages import column_of, page_of


@triton.jit
def _grad_x(
    grad_x_ptr,
    grad_ptr,
    memory_ptr,
    columns_ptr,
    route_ptr,
    S,
    D,
    outputs,
    k,
    C,
    R,
    stride_gb,
    stride_gs,
    stride_go,
    stride_wd,
    stride_wo,
    stride_cc,
    stride_ck,
    stride_r,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (k tiles * S tiles * B,): grad [S, O] times the active rows of memory, into a zeroed grad_x [B, S, D].

    In one dimension, since a packed batch has more sequences than the others may have.
    """
    j_tiles = tl.cdiv(k, BLOCK_J)
    s_tiles = tl.cdiv(S, BLOCK_S)
    place = tl.program_id(0) // j_tiles
    b = (place // s_tiles).to(tl.int64)
    s = place % s_tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    j = tl.program_id(0) % j_tiles * BLOCK_J + tl.arange(0, BLOCK_J)
    edit = tl.load(route_ptr + b * stride_r).to(tl.int64)
    if (edit < 0) | (edit >= C):
        return
    columns_ptr += edit * stride_cc
    page = page_of(columns_ptr, D, R)
    c = column_of(tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < k, other=-1), page, D).to(tl.int64)
    inside = c >= 0
    grad_ptr += b * stride_gb + s[:, None].to(tl.int64) * stride_gs
    memory_ptr += (page + c[:, None]) * stride_wd
    acc = tl.zeros((BLOCK_S, BLOCK_J), tl.float32)
    for start in range(0, outputs, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        offset = o[None, :].to(tl.int64)
        dy = tl.load(grad_ptr + offset * stride_go, mask=(s < S)[:, None] & (o < outputs)[None, :], other=0.0)
        weight = tl.load(memory_ptr + offset * stride_wo, mask=inside[:, None] & (o < outputs)[None, :], other=0.0)
        acc = dot(dy, tl.trans(weight), acc)
    grad_x_ptr += (b * S + s.to(tl.int64))[:, None] * D + c[None, :]
    tl.store(grad_x_ptr, acc.to(grad_x_ptr.dtype.element_ty), mask=(s < S)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["leader"])
def _grad_memory(
    grad_memory_ptr,
    grad_ptr,
    x_ptr,
    columns_ptr,
    route_ptr,
    leader,
    B,
    S,
    D,
    outputs,
    k,
    C,
    R,
    stride_gb,
    stride_gs,
    stride_go,
    stride_xb,
    stride_xs,
    stride_xd,
    stride_cc,
    stride_ck,
    stride_r,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (O tiles, k tiles): adds what the sequences of the leader's route contribute to its rows of memory.

    The leader is the first sequence of its route; for any other the launch ends at once. Launches follow each other in
    the stream, so rows that two edits share are added to in a fixed order.
    """
    edit = tl.load(route_ptr + leader * stride_r)
    if (edit < 0) | (edit >= C):
        return
    earlier = edit * 0
    for b in range(leader):
        earlier += (tl.load(route_ptr + b * stride_r) == edit).to(tl.int32)
    if earlier > 0:
        return
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    columns_ptr += edit.to(tl.int64) * stride_cc
    page = page_of(columns_ptr, D, R)
    row = tl.load(columns_ptr + j.to(tl.int64) * stride_ck, mask=j < k, other=-1).to(tl.int64)
    inside = (row >= page) & (row < page + D)
    x_rows = x_ptr + leader.to(tl.int64) * stride_xb + (row - page)[None, :] * stride_xd
    grad_rows = grad_ptr + leader.to(tl.int64) * stride_gb + o[None, :].to(tl.int64) * stride_go
    acc = tl.zeros((BLOCK_J, BLOCK_O), tl.float32)
    for b in range(leader, B):
        if tl.load(route_ptr + b * stride_r) == edit:
            for start in range(0, S, BLOCK_S):
                s = start + tl.arange(0, BLOCK_S)
                token = s[:, None].to(tl.int64)
                x = tl.load(x_rows + token * stride_xs, mask=(s < S)[:, None] & inside[None, :], other=0.0)
                dy = tl.load(grad_rows + token * stride_gs, mask=(s < S)[:, None] & (o < outputs)[None, :], other=0.0)
                acc = dot(tl.trans(x), dy, acc)
        x_rows += stride_xb
        grad_rows += stride_gb
    grad_memory_ptr += row[:, None] * outputs + o[None, :]
    held = inside[:, None] & (o < outputs)[None, :]
    tl.store(grad_memory_ptr, tl.load(grad_memory_ptr, mask=held, other=0.0) + acc, mask=held)


def _to_x(
    grad: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> torch.Tensor:
    batch, tokens, width = x.shape
    outputs = memory.shape[1]
    edits, k = columns.shape
    grad_x = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    if grad.numel() == 0:
        return grad_x
    config = _launch.config("masked_linear_grad_x", x, f"k{k} O{outputs}")
    block_s = power_of_two(tokens, 16, config["BLOCK_S"])
    block_j = power_of_two(k, 16, config["BLOCK_J"])
    _grad_x[(triton.cdiv(k, block_j) * triton.cdiv(tokens, block_s) * batch,)](
        grad_x,
        grad,
        memory,
        columns,
        route,
        tokens,
        width,
        outputs,
        k,
        edits,
        len(memory),
        *grad.stride(),
        *memory.stride(),
        *columns.stride(),
        *route.stride(),
        BLOCK_S=block_s,
        BLOCK_J=block_j,
        BLOCK_O=power_of_two(outputs, 16, config["BLOCK_O"]),
        **_launch.options(config),
    )
    return grad_x


def _to_memory(
    grad: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> torch.Tensor:
    batch, tokens, width = x.shape
    outputs = memory.shape[1]
    edits, k = columns.shape
    total = torch.zeros(memory.shape, dtype=torch.float32, device=x.device)
    if grad.numel() == 0:
        return total.to(memory.dtype)
    config = _launch.config("masked_linear_grad_memory", x, f"k{k} O{outputs}")
    block_j = power_of_two(k, 16, config["BLOCK_J"])
    block_o = power_of_two(outputs, 16, config["BLOCK_O"])
    for leader in range(batch):
        _grad_memory[(triton.cdiv(outputs, block_o), triton.cdiv(k, block_j))](
            total,
            grad,
            x,
            columns,
            route,
            leader,
            batch,
            tokens,
            width,
            outputs,
            k,
            edits,
            len(memory),
            *grad.stride(),
            *x.stride(),
            *columns.stride(),
            *route.stride(),
            BLOCK_S=power_of_two(tokens, 16, config["BLOCK_S"]),
            BLOCK_J=block_j,
            BLOCK_O=block_o,
            **_launch.options(config),
        )
    return total.to(memory.dtype)


def masked_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the residual product to x [B, S, D] and to memory [D, O]; an empty tensor for one that is not needed.

    Memory's gradient is summed in float32 and rounded once; one launch per sequence, of which those that do not open a
    route end at once. Deterministic.
    """
    with on_device_of(x):
        grad_x = _to_x(grad, x, memory, columns, route) if need_x else x.new_empty(0)
        grad_memory = _to_memory(grad, x, memory, columns, route) if need_memory else memory.new_empty(0)
    return grad_x, grad_memory
