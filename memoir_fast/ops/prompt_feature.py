"""`prompt_feature`: the mean of a prompt's activations, centred."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.registration import register
from memoir_fast.reference.prompt_feature import prompt_feature as prompt_feature_in_torch

_ON_A_GPU = (torch.float16, torch.bfloat16, torch.float32)


def _check(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> None:
    checks.tensor("x", x, checks.FLOATS, "B S D")
    checks.tensor("prompt_mask", prompt_mask, torch.bool, "B S", B=x.shape[0], S=x.shape[1])
    checks.tensor("mu", mu, torch.float32, "D", D=x.shape[2])
    checks.same_device(x=x, prompt_mask=prompt_mask, mu=mu)


def _fake(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)


def _why_not_on_a_gpu(x: torch.Tensor, *_: Any) -> str | None:
    if not x.is_cuda:
        return f"needs cuda tensors, got {x.device.type}"
    if x.dtype not in _ON_A_GPU:
        return f"serves float16, bfloat16 and float32, got {str(x.dtype).removeprefix('torch.')}"
    if x.dim() != 3:
        return "needs x [B, S, D]"
    batch, token, step = x.stride()
    size = x.element_size()
    if step != 1 or batch * size % 16 or token * size % 16 or x.data_ptr() % 16:
        return "needs tokens of dense inputs that begin on 16-byte boundaries"
    return None


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import prompt_feature as kernels

    return kernels.prompt_feature, kernels.unsupported


_op = register(
    "prompt_feature",
    "(Tensor x, Tensor prompt_mask, Tensor mu) -> Tensor",
    _check,
    _fake,
    reference=prompt_feature_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(_why_not_on_a_gpu),
)


def prompt_feature(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor, *, check: bool = True) -> torch.Tensor:
    """Mean of each sequence's prompt activations minus the background mean: MEMOIR's decentred prompt feature.

    The sum is taken in float32 in a fixed order: tokens are counted from the first marked one, blocks of 32 tokens are
    summed one by one in order, then the blocks' sums are added in order. So the result depends neither on the batch nor
    on padding, on either side.

    Args:
        x (Tensor): activations that enter the edited layer, float16/bfloat16/float32/float64 [B, S, D].
        prompt_mask (Tensor): bool [B, S], True at the prompt's tokens.
        mu (Tensor): background mean, float32 [D].
        check (bool): raise where a sequence has no marked token. This reads a value back from the device, so the hot
            path says False; the row is then NaN, and its hash a mask that matches nothing. Ignored under
            torch.compile. Default: True.

    Returns:
        Tensor: feature, float32 [B, D].

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device, or a sequence without a marked token.

    Bytes read: B * S * D * itemsize; written: 4 * B * D. Source: MEMOIR (arXiv 2506.07899), section 3.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import prompt_feature
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
        >>> prompt_feature(x, torch.tensor([[True, True, False]]), torch.tensor([0.5, 0.0]))
        tensor([[1.5000, 3.0000]])
    """
    if check and not torch.compiler.is_compiling() and not bool(prompt_mask.any(-1).all()):
        row = int(prompt_mask.any(-1).logical_not().nonzero()[0])
        raise ValueError(f"prompt_mask must mark at least one token of every sequence, row {row} marks none")
    return _op(x, prompt_mask, mu)
