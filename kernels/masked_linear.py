"""`masked_linear` and its in-place form by Triton: which kernel serves which shape.

One token row (`_masked_linear_decode`): every program walks the active columns over a narrow tile of outputs, with
16-byte loads and products in float32; one launch. Few tokens per sequence: tiles of 16 rows on the tensor cores, rows
of one route share each load. Many tokens (`_masked_linear_prefill`): tiles of one sequence's tokens. A sum over splits
is added up by a second launch in a fixed order; no kernel adds floats atomically, and none needs a value back from the
device. Sequences without a route end at once.

Where a dense pass is cheaper: R routes in a tile of rows read R * k rows of memory, a dense pass reads D. So where
R * k >= D (from four routes on at k / D = 0.286) the tile's programs switch, on the device, to one pass over all D
rows with each row's inactive inputs at zero. A prefill tile has one route and never gains from it.
"""

import torch
from memoir_fast.kernels import _masked_linear_decode, _masked_linear_packed, _masked_linear_prefill
from memoir_fast.kernels._common import on_device_of, unsupported
from memoir_fast.kernels._masked_linear_backward import masked_linear_backward

__all__ = ["masked_linear", "masked_linear_add_", "masked_linear_backward", "unsupported"]

_PREFILL_FROM = 16  # tokens per sequence from which one sequence fills a tensor-core tile
_PACK_FROM = 128  # tokens per sequence from which inputs are gathered once, and not for every tile of outputs


def masked_linear(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.masked_linear`. The order of the sums depends on the shapes and the batch's routes alone."""
    y = torch.empty((*x.shape[:2], memory.shape[1]), dtype=x.dtype, device=x.device)
    _serve(y, x, memory, columns, route, add=False)
    return y


def masked_linear_add_(
    base: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> None:
    """See `memoir_fast.ops.masked_linear_add_`."""
    _serve(base, x, memory, columns, route, add=True)


def _serve(
    out: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor, *, add: bool
) -> None:
    if out.numel() == 0:
        return
    tokens = x.shape[1]
    form = _masked_linear_decode
    if tokens >= _PREFILL_FROM:
        form = _masked_linear_packed if tokens >= _PACK_FROM else _masked_linear_prefill
    with on_device_of(x):
        form.launch(out, x, memory, columns, route, add)
