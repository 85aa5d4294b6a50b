"""The background mean mu, from prompts that have nothing to do with any edit."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from memoir_fast import ops
from memoir_fast.distributed.row_parallel import Part
from memoir_fast.hf.partial_forward import layer_input
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, pad, padding_id, prompt_ids
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.autocast import without_autocast


def irrelevant_prompts() -> list[str]:
    """The package's own everyday sentences and questions."""
    text = (files("memoir_fast") / "data" / "irrelevant.txt").read_text(encoding="utf-8")
    return text.splitlines()


@without_autocast()
def features(
    model: nn.Module, layer: nn.Module, tokenizer: Any, prompts: Sequence[str], mu: torch.Tensor, batch: int = 16
) -> torch.Tensor:
    """Features float32 [N, D] of N prompts at `layer`, run in batches padded on the right.

    Where several processes share the layer, of this one's inputs alone; `mu` is float32 [D] in any case.
    """
    part: Part | None = getattr(layer, "part", None)
    own = mu if part is None else mu[part.first : part.last]
    found = []
    for start in range(0, len(prompts), batch):
        rows = [Row(ids, len(ids)) for ids in (prompt_ids(tokenizer, text) for text in prompts[start : start + batch])]
        input_ids, mask, _ = pad(rows, padding_id(tokenizer), device_of(model))
        x = layer_input(model, layer, input_ids=input_ids, attention_mask=mask)
        found.append(ops.prompt_feature(x, mask.bool().to(x.device), own.to(x.device)))
    return torch.cat(found)


def background_mean(model: nn.Module, layer: MemoirLinear, tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """mu, float32 [D]: the mean over `prompts` of the token mean of the layer's input."""
    if not prompts:
        raise ValueError("mu needs at least one irrelevant prompt, got none")
    zero = torch.zeros_like(layer.mu)
    return layer.whole(features(model, layer, tokenizer, prompts, zero).mean(dim=0))
