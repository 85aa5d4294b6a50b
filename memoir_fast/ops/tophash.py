"""`tophash`: top-k of a feature's magnitudes, permuted, as a packed mask and as columns."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.mask_format import words
from memoir_fast.ops.registration import register
from memoir_fast.reference.tophash import tophash as tophash_in_torch

_WIDEST_ON_A_GPU = 16384  # a block keeps a row in registers


def _check(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> None:
    checks.tensor("feature", feature, torch.float32, "B D")
    width = feature.shape[1]
    checks.tensor("permutation", permutation, torch.int32, "D", D=width)
    checks.same_device(feature=feature, permutation=permutation)
    if not 1 <= width <= checks.LARGEST_WIDTH:
        raise ValueError(f"D must lie in [1, {checks.LARGEST_WIDTH}], got {width}")
    if not 1 <= k <= width:
        raise ValueError(f"k must lie in [1, D = {width}], got {k}")
    checks.index_range("permutation", permutation, 0, width)


def _fake(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = feature.shape
    return (
        feature.new_empty((rows, words(width)), dtype=torch.int32),
        feature.new_empty((rows, k), dtype=torch.int32),
    )


def _why_not_on_a_gpu(feature: torch.Tensor, *_: Any) -> str | None:
    if not feature.is_cuda:
        return f"needs cuda tensors, got {feature.device.type}"
    if feature.dim() == 2 and feature.shape[1] > _WIDEST_ON_A_GPU:
        return f"serves at most {_WIDEST_ON_A_GPU} inputs, got {feature.shape[1]}"
    return None


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import tophash as kernels

    return kernels.tophash, kernels.unsupported


_op = register(
    "tophash",
    "(Tensor feature, int k, Tensor permutation) -> (Tensor, Tensor)",
    _check,
    _fake,
    reference=tophash_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(_why_not_on_a_gpu),
)


def tophash(
    feature: torch.Tensor, k: int, permutation: torch.Tensor, *, check: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """MEMOIR's TopHash: which k of the D columns of the residual memory a prompt owns.

    The k elements of largest magnitude are chosen; among equal magnitudes the lower index comes first. Bit
    `permutation[i]` is set for each chosen i. The permutation decides which columns are written; the overlap of two
    masks does not depend on it.

    Args:
        feature (Tensor): float32 [B, D], 1 <= D <= 65,536.
        k (int): 1 <= k <= D.
        permutation (Tensor): int32 [D], a permutation of 0 .. D-1.
        check (bool): raise on a feature that is not finite. This reads a value back from the device, so the hot path
            says False; such a row then has an all-zero mask, which matches nothing, and columns of -1. Ignored under
            torch.compile. Default: True.

    Returns:
        mask (Tensor): int32 [B, W], W = 4 * ceil(D / 128); bit b of word w is column 32 * w + b, bits past D are 0.
        columns (Tensor): int32 [B, k], the set bits' numbers, ascending.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape, device or k, or a feature with NaN or infinity.

    Bytes read: 4 * B * D + 4 * D; written: 4 * B * (W + k). Source: MEMOIR (arXiv 2506.07899), section 3.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import tophash
        >>> mask, columns = tophash(torch.tensor([[0.1, -5.0, 5.0, 0.2]]), 2, torch.tensor([3, 2, 0, 1]).int())
        >>> columns.tolist(), mask.tolist()
        ([[0, 2]], [[5, 0, 0, 0]])
    """
    mask, columns = _op(feature, k, permutation)
    if check and not torch.compiler.is_compiling() and bool((columns[:, :1] < 0).any()):
        row = int((columns[:, 0] < 0).nonzero()[0])
        raise ValueError(f"feature must be finite, row {row} holds NaN or infinity")
    return mask, columns
