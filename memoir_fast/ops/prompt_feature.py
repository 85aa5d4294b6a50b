"""`prompt_feature`: the mean of a prompt's activations, centred."""

import torch

from memoir_fast.ops import _checks
from memoir_fast.ops._library import register


def _check(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> None:
    _checks.tensor("x", x, _checks.FLOATS, "B S D")
    _checks.tensor("prompt_mask", prompt_mask, torch.bool, "B S", B=x.shape[0], S=x.shape[1])
    _checks.tensor("mu", mu, torch.float32, "D", D=x.shape[2])
    _checks.same_device(x=x, prompt_mask=prompt_mask, mu=mu)


def _fake(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)


_op = register("prompt_feature", "(Tensor x, Tensor prompt_mask, Tensor mu) -> Tensor", _check, _fake)


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
            path says False; the row is then NaN, which `tophash` turns into a mask that matches nothing. Ignored under
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
