"""What a figure is compared with: the unedited model, fine-tuning of the same layer, and MEMOIR without one part.

| name | what it is |
| --- | --- |
| unedited | the model as it came |
| ft | Adam on the edited layer's own weight, one edit after another |
| paper-routing | masks tell whom a prompt belongs to, as published; so they do in all that follow |
| no-permutation | a mask's bits are the strongest coordinates themselves |
| random-mask | a mask is drawn at random for each prompt: the same for the same prompt, another for another wording |
| always-on | no threshold: every prompt goes to the edit that is nearest |
| dense | k = D: all edits share all columns |
| k=<number> | another number of columns |
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from memoir_fast.config import MemoirConfig
from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.editing.context import frozen
from memoir_fast.hf.partial_forward import UpperLayers
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import context_length, pad, padding_id, row
from memoir_fast.mask_format import pack
from memoir_fast.modules import MemoirLinear

ABLATIONS = ("paper-routing", "no-permutation", "random-mask", "always-on", "dense")
BASELINES = ("unedited", "ft", *ABLATIONS)

_FT_STEPS, _FT_RATE, _FT_BAR = 20, 1e-3, 0.02
_KEYS = 8  # strongest coordinates that stand for a prompt: enough to tell prompts apart, too few for ties


def names(text: str) -> list[str]:
    """The baselines of a list with commas; `all` and `none` are words for themselves. ValueError for another."""
    given = [name.strip() for name in text.split(",") if name.strip()]
    if given in (["none"], []):
        return []
    if given == ["all"]:
        return list(BASELINES)
    for name in given:
        if name not in BASELINES and not (name.startswith("k=") and name[2:].isdecimal() and int(name[2:]) > 0):
            raise ValueError(f"a baseline must be one of {', '.join(BASELINES)} or k=<number>, got {name!r}")
    return given


def settings(name: str, config: MemoirConfig, width: int) -> MemoirConfig:
    """The config of an ablation of a memory with `config` on a layer with `width` inputs."""
    published = config.replace(routing="paper", routing_block=None)
    if name == "dense":
        return published.replace(k=width)
    return published.replace(k=int(name[2:])) if name.startswith("k=") else published


def ablate(memoir: EditedModel, name: str) -> None:
    """Takes the part that `name` names out of a memory that has no edits yet."""
    layer = memoir.layer
    if name == "no-permutation":
        layer.permutation.copy_(torch.arange(layer.in_features))
    elif name == "random-mask":
        layer.hashing.hash = _random_masks(layer.in_features, layer.k)  # type: ignore[method-assign]
    elif name == "always-on":
        layer.tau = 1e-6  # one shared bit is enough


def _random_masks(width: int, k: int) -> Any:
    """In place of `TopHash.hash`: k bits drawn by a generator whose seed is the feature's strongest coordinates."""

    def hash_at_random(feature: torch.Tensor, *, check: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        if check and not feature.isfinite().all():
            raise ValueError("feature must be finite")
        keys = feature.abs().topk(min(_KEYS, width), dim=1).indices.sort(dim=1).values.cpu()
        drawn = [torch.randperm(width, generator=_generator(key.tolist()))[:k].sort().values for key in keys]
        columns = torch.stack(drawn).int().to(feature.device)
        return _packed(columns, width), columns

    return hash_at_random


def _generator(key: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def _packed(columns: torch.Tensor, width: int) -> torch.Tensor:
    """Columns int32 [B, k] -> masks int32 [B, W]."""
    bits = torch.zeros((len(columns), width), dtype=torch.bool, device=columns.device)
    return pack(bits.scatter_(1, columns.long(), True))


@contextmanager
def fine_tuned(memoir: EditedModel, edits: Sequence[Edit]) -> Iterator[list[float]]:
    """Within the block, the layer's own weight is fine-tuned to the edits, one after another; the memory must be empty.

    Adam, learning rate 1e-3, at most 20 steps per edit, until the loss on the target's tokens is at most 0.02. The
    old weight is put back, bit for bit. Yields each edit's last loss.
    """
    if memoir.edits:
        raise ValueError(f"fine-tuning is compared on a model without edits, this one has {len(memoir.edits)}")
    weight: torch.Tensor = memoir.layer.base.weight.data
    if not weight.dtype.is_floating_point:
        raise ValueError(f"the layer's weight must be floating to be fine-tuned, got {weight.dtype}")
    before = weight.clone()
    upper = UpperLayers(memoir.model, memoir.layer)
    try:
        yield [_fine_tune(memoir, memoir.layer, upper, edit) for edit in edits]
    finally:
        weight.copy_(before)


def _fine_tune(memoir: EditedModel, layer: MemoirLinear, upper: UpperLayers, edit: Edit) -> float:
    """One edit, on its prompt alone; adds the change to the layer's weight and returns the last loss."""
    model, tokenizer = memoir.model, memoir.tokenizer
    one = row(tokenizer, edit.prompt, edit.target, context_length(model))
    input_ids, mask, labels = pad([one], padding_id(tokenizer), device_of(model))
    positions = F.pad(labels[:, 1:] != -100, (0, 1))
    targets = labels[:, 1:][labels[:, 1:] != -100]
    lower = upper.lower(input_ids, mask)
    wide = torch.promote_types(lower.x.dtype, torch.float32)
    change = torch.zeros((layer.in_features, layer.out_features), dtype=wide, device=lower.x.device, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=_FT_RATE)
    loss = torch.tensor(float("inf"))
    with frozen(model), torch.enable_grad():
        for _ in range(_FT_STEPS):
            logits = upper.logits(lower, lower.x.to(wide) @ change, positions)
            loss = F.cross_entropy(logits.to(wide), targets.to(logits.device))
            if loss.item() <= _FT_BAR:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.base.weight.data
    found = change.detach().to(weight.dtype)
    weight += found if hasattr(layer.base, "nf") else found.mT
    return loss.item()
