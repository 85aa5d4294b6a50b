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
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if not isinstance(attention_mask, torch.Tensor):
        return torch.ones((batch, tokens), dtype=torch.bool, device=device)
    mask = attention_mask.to(device)
    if mask.dim() == 2:  # [B, past + S]
        return mask[:, -tokens:].bool().expand(batch, -1)
    # [B, 1, S, keys], bool or additive: a token that attends to its own key is no padding
    allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
    keys = allowed.shape[-1]
    own = torch.arange(tokens, device=device) + (start if keys >= start + tokens else keys - tokens)
    return allowed.gather(2, own.expand(len(allowed), tokens)[..., None])[..., 0].expand(batch, -1)
