"""Which tokens of a call are no padding."""

from typing import Any

import torch


def real_tokens(attention_mask: Any, start: int, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Which of the tokens at hand are no padding, bool [B, S], from any form of attention mask that a model takes.

    Args:
        attention_mask: [B, past + S] of any dtype, [B or 1, 1, S, keys] bool or additive, a dict of such by the kind of
            attention, or None: no padding.
        start (int): positions that the cache holds already.
        batch, tokens (int): B and S.
        device: where the result shall be.
    """
    mask = full_attention(attention_mask)
    if not isinstance(mask, torch.Tensor):
        return torch.ones((batch, tokens), dtype=torch.bool, device=device)
    mask = mask.to(device)
    if mask.dim() == 2:  # [B, past + S]
        return mask[:, -tokens:].bool().expand(batch, -1)
    allowed = allowed_keys(mask)
    keys = allowed.shape[-1]
    own = torch.arange(tokens, device=device) + (start if keys >= start + tokens else keys - tokens)
    # a token that attends to its own key is no padding
    return allowed.gather(2, own.expand(len(allowed), tokens)[..., None])[..., 0].expand(batch, -1)


def full_attention(attention_mask: Any) -> Any:
    """The mask of full attention where there is one for each kind of attention; else the mask itself."""
    if isinstance(attention_mask, dict):
        return attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    return attention_mask


def allowed_keys(mask: torch.Tensor) -> torch.Tensor:
    """[B, 1, S, keys] or [B, S, keys], bool, whole or additive -> which keys a token attends to, bool [B, S, keys]."""
    first = mask[:, 0] if mask.dim() == 4 else mask
    return first > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else first.bool()
