"""`added`: what a memory's product adds to a linear layer's output."""

from typing import Any

import torch

from memoir_fast.modules.routed import Routed, follows_nothing


def added(
    y: torch.Tensor, tokens: torch.Tensor, routed: Routed | None, memory: Any, outputs: slice | None
) -> torch.Tensor:
    """The output of a layer with what its sequences read of the memory.

    Args:
        y (Tensor): the base layer's output [B, S, O]; changed in place where no gradient needs it.
        tokens (Tensor): the layer's inputs [B, S, D].
        routed (Routed, optional): where each sequence reads. None: nowhere.
        memory (ResidualMemory): what is read, where `routed` names no other.
        outputs (slice, optional): which of the memory's outputs are this layer's. None: all.
    """
    if routed is None:
        return y
    for one in (routed, *routed.others):
        y = _with_one(y, tokens, one, memory if one.memory is None else one.memory, outputs)
    return y


def _with_one(
    y: torch.Tensor, tokens: torch.Tensor, routed: Routed, memory: Any, outputs: slice | None
) -> torch.Tensor:
    """Adds to y what is read of one memory."""
    if follows_nothing(routed.route):
        return y
    tokens = routed.sequences(tokens)
    if routed.helped is not None:  # where the memory rests, it reads zeros and adds none
        tokens = torch.where(routed.helped[..., None], tokens, 0)
    mixed = not y.dtype == tokens.dtype == memory.table.dtype  # under autocast, or over a quantised base
    if mixed or torch.is_grad_enabled() and (y.requires_grad or tokens.requires_grad):
        residual = memory(tokens.to(memory.table.dtype), routed.rows, routed.route, outputs)
        return y + residual.to(y.dtype).view(y.shape)
    output = y if y.shape[:-1] == tokens.shape[:-1] else y.view(*tokens.shape[:2], y.shape[-1])
    memory.add_(output, tokens, routed.rows, routed.route, outputs)
    return y
