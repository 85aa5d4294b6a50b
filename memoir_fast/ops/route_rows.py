"""`route_rows`: where in memory sequences read, from the edits that they follow."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.registration import register
from memoir_fast.reference.route_rows import route_rows as route_rows_in_torch

_LARGEST = 2**31  # rows of memory, whose numbers are int32


def _check(mask: torch.Tensor, page: torch.Tensor, route: torch.Tensor, k: int, width: int) -> None:
    checks.tensor("mask", mask, torch.int32, "C W")
    checks.tensor("page", page, torch.int32, "C", C=mask.shape[0])
    checks.tensor("route", route, torch.int32, "B")
    checks.same_device(mask=mask, page=page, route=route)
    bits = 32 * mask.shape[1]
    if not 1 <= k <= bits:
        raise ValueError(f"k must lie in [1, 32 W = {bits}], got {k}")
    if not 1 <= width < _LARGEST:
        raise ValueError(f"width must lie in [1, {_LARGEST}), got {width}")
    checks.index_range("route", route, -1, mask.shape[0])
    if not mask.shape[0] and route.shape[0]:
        raise ValueError(f"mask must be int32 [C, W] with C > 0 where there is a route, got {checks.describe(mask)}")


def _fake(
    mask: torch.Tensor, page: torch.Tensor, route: torch.Tensor, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return mask.new_empty((route.shape[0], k)), mask.new_empty((route.shape[0],))


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import route_rows as kernels

    return kernels.route_rows, kernels.unsupported


_op = register(
    "route_rows",
    "(Tensor mask, Tensor page, Tensor route, int k, int width) -> (Tensor, Tensor)",
    _check,
    _fake,
    reference=route_rows_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(),
)


def route_rows(
    mask: torch.Tensor, page: torch.Tensor, route: torch.Tensor, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of memory that each sequence reads, and with which of the batch it shares them.

    What stands between the search and the product: column c of an edit on page p is row p * width + c.

    Args:
        mask (Tensor): the store's packed masks, int32 [C, W]; bit b of word w is column 32 * w + b.
        page (Tensor): the page of each edit, int32 [C].
        route (Tensor): the edit that each sequence follows, int32 [B], or -1.
        k (int): columns per edit, 1 <= k <= 32 W.
        width (int): D, rows of a page.

    Returns:
        (rows, first): int32 [B, k], ascending, of the mask's first k bits; one of fewer, as of a deleted edit, is
            filled up with page * width - 1. Of a route -1 they are edit 0's. And int32 [B], the first sequence of the
            batch that follows the same edit; -1 where the route is -1.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape, k or width; on a CPU, where a route is no row of `mask`. On a
            GPU such a route gives rows of -1 and a first of -1.

    Bytes read: 4 * B * W; written: 4 * B * (k + 1).

    Example:
        >>> import torch
        >>> from memoir_fast.ops import route_rows
        >>> mask, page = torch.tensor([[5, 0, 1, 0], [3, 0, 0, 0]]).int(), torch.tensor([0, 2]).int()
        >>> rows, first = route_rows(mask, page, torch.tensor([1, -1, 0, 1]).int(), 2, 100)
        >>> rows.tolist(), first.tolist()
        ([[200, 201], [0, 2], [0, 2], [200, 201]], [0, -1, 2, 0])
    """
    return _op(mask, page, route, k, width)
