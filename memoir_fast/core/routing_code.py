"""Makes a model's routing code from the model, its tokenizer and background prompts alone.

Nothing else of a corpus is needed: how unexpected a token is in general, the model says itself.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.core.wordings import pseudo_neighbours, rewordings
from memoir_fast.hf.chat import as_chat, chat_text, has_template, special_ids, turn_marks
from memoir_fast.hf.own_pass import uncompiled
from memoir_fast.hf.partial_forward import block_inputs, blocks_around
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, pad, padding_id, prompt_ids, token_texts
from memoir_fast.modules.autocast import without_autocast
from memoir_fast.modules.prompt_sums import PromptSums
from memoir_fast.modules.routing_code import ASKS, BEGINS_WORD, ENDS, ENDS_SOFTLY, INITIAL, RoutingCode

WIDTH, K = 1536, 440
"""D, bits of a code, and how many of them are set."""
THRESHOLD = 0.58
"""Overlap ratio from which a row matches, where nothing asks for more."""

_POWER = 2.0  # of a token's surprise, in its weight
_FLOOR = 0.1  # least probability of a token, in shares of 1 / V: pieces of words that must follow are not that rare
_FADE = 0.25  # the code's `fade`, in shares of the background prompts' median weight
_SHRINKAGE = 0.1  # added to the covariance's eigenvalues, in shares of their mean
_CANDIDATES = (1, 2, 3)  # blocks to choose from
_COMPARED = 48  # background prompts that the block is chosen on
_COUNTED = 64  # background prompts whose next tokens are counted
_FOLDS = 4
_REPLY = "I see."

_ASKING = re.compile(r"[?？؟]")
_SOFT_END = re.compile(r"[.!?…]['\")\]»”’]*\s*$")
_HARD_END = re.compile(r"[。！？\n]")
_SPACES = ("\u0120", "\u2581", "\u010a", " ", "\n")  # how tokenizers write white space at a token's beginning


@without_autocast()
def make(
    model: Any, layer: nn.Module, tokenizer: Any, prompts: Sequence[str], block: int | None = None, seed: int = 0
) -> RoutingCode:
    """A routing code for `model`.

    Args:
        model: a causal language model of transformers without a memory.
        layer (nn.Module): its layer that will be edited.
        tokenizer: the model's.
        prompts (sequence of str): background prompts, unlike each other; 40 or more.
        block (int, optional): whose input is read. Default: chosen by `choose_block`.
        seed (int): of the random rotation. Default: 0.

    Raises:
        ValueError: fewer than 2 prompts, or activations that are not finite.
    """
    if len(prompts) < 2:
        raise ValueError(f"a routing code needs at least 2 background prompts, got {len(prompts)}")
    weights = token_weights(model, tokenizer, prompts[:_COUNTED])
    bare = bare_code(tokenizer, weights, 0)
    if block is None:
        block = choose_block(model, layer, tokenizer, prompts[:_COMPARED], bare)[0]
    bare.block = block
    forms = background_forms(tokenizer, prompts)
    features = torch.cat([prompt_features(model, layer, tokenizer, bare, form) for form in forms])
    _require_finite(weights, features)
    directions = rotation(features.shape[1], WIDTH, seed).to(features)
    known = weights.cpu()
    masses = [float(known[prompt_ids(tokenizer, one)].sum()) for one in prompts]
    return RoutingCode(
        weights,
        bare.marks,
        features.mean(dim=0),
        whitened(features, directions),
        K,
        block,
        max(_FADE * sorted(masses)[len(masses) // 2], 1e-6),
        bare.opened,
        bare.closed,
    )


def token_weights(model: Any, tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """The weight float32 [V] of every token: how unexpected it is, squared; 0 for special tokens and blanks.

    The probability of a token is the mean of what the model expects next, over all positions of `prompts`. So a few
    sentences tell of every token of the vocabulary, also of those that stand in none of them.
    """
    total, positions = torch.zeros((), device=device_of(model)), 0
    for ids, mask in _batches(tokenizer, prompts, device_of(model)):
        with uncompiled(model.modules()), torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, real in zip(logits, mask.bool(), strict=True):
            total = total + row[real].float().softmax(dim=-1).sum(dim=0).double()
        positions += int(mask.sum())
    probability = (total / positions).float()
    size = len(probability)
    weights = -probability.clamp(min=_FLOOR / size).log()
    weights = weights.clamp(min=0) ** _POWER
    blank = [one for one, text in enumerate(token_texts(tokenizer, size)) if not text.strip()]
    special = [one for one in special_ids(tokenizer) if one < size]
    weights[torch.tensor([*blank, *special], dtype=torch.int64, device=weights.device)] = 0.0
    return weights


def text_marks(tokenizer: Any, size: int) -> torch.Tensor:
    """What each of `size` tokens means for where sentences end, uint8 [V]; see `modules.routing_code`."""
    marks = torch.zeros(size, dtype=torch.uint8)
    written = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    for number, (token, text) in enumerate(zip(written, token_texts(tokenizer, size), strict=True)):
        bare = text.strip()
        marks[number] = (
            ENDS_SOFTLY * bool(_SOFT_END.search(text))
            + ENDS * bool(_HARD_END.search(text))
            + BEGINS_WORD * ((token or "")[:1] in _SPACES or text[:1] in _SPACES)
            + INITIAL * (0 < len(bare) <= 2 and bare.isalpha() and bare[0].isupper())
            + ASKS * bool(_ASKING.search(text))
        )
    return marks


def background_forms(tokenizer: Any, prompts: Sequence[str]) -> list[list[str]]:
    """The prompts; with a chat template, also each as a user's only turn, and as one that follows another's."""
    forms = [list(prompts)]
    if has_template(tokenizer):
        forms.append([as_chat(tokenizer, one) or one for one in prompts])
        others = [*prompts[1:], *prompts[:1]]
        talks = ([("user", a), ("assistant", _REPLY), ("user", b)] for a, b in zip(others, prompts, strict=True))
        forms.append([chat_text(tokenizer, talk) for talk in talks])
    return forms


def prompt_features(
    model: Any, layer: nn.Module, tokenizer: Any, code: RoutingCode, prompts: Sequence[str]
) -> torch.Tensor:
    """The first feature of each prompt, float32 [N, H]; only the blocks before the code's run."""
    return features_at(model, layer, tokenizer, code, prompts, [code.block])[0]


def features_at(
    model: Any, layer: nn.Module, tokenizer: Any, code: RoutingCode, prompts: Sequence[str], blocks: Sequence[int]
) -> list[torch.Tensor]:
    """As `prompt_features`, at each of several blocks, which are in ascending order."""
    read = [
        [code.features(sums)[:, 0] for sums in part] for part in _read(model, layer, tokenizer, code, prompts, blocks)
    ]
    return [torch.cat(parts) for parts in zip(*read, strict=True)]


class Asked(NamedTuple):
    """What N prompts are searched by."""

    codes: torch.Tensor
    """int32 [N, 3, W]."""
    words: torch.Tensor
    """bool [N, 1 + V], their tokens; see `RoutingCode.said`."""


def prompt_codes(
    model: Any, layer: nn.Module, tokenizer: Any, code: RoutingCode, prompts: Sequence[str]
) -> torch.Tensor:
    """The codes of prompts, int32 [N, 3, W]."""
    read = _read(model, layer, tokenizer, code, prompts, [code.block])
    return _agreed(layer, torch.cat([code.masks(sums) for (sums,) in read]))


def asked_by(model: Any, layer: nn.Module, tokenizer: Any, code: RoutingCode, prompts: Sequence[str]) -> Asked:
    """The codes of prompts, and their words, 1 + V bytes each: of many prompts, some at a time are asked for."""
    read = _read(model, layer, tokenizer, code, prompts, [code.block])
    codes, words = zip(*((code.masks(sums), code.said(sums)) for (sums,) in read), strict=True)
    return Asked(_agreed(layer, torch.cat(codes)), torch.cat(words))


def _agreed(layer: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    part = getattr(layer, "part", None)
    found: torch.Tensor = codes if part is None else part.agreed(codes)
    return found


def _require_finite(*features: torch.Tensor) -> None:
    if not all(one.isfinite().all() for one in features):
        raise ValueError("the model's activations on background prompts must be finite, got NaN or infinity")


def choose_block(
    model: Any, layer: nn.Module, tokenizer: Any, prompts: Sequence[str], bare: RoutingCode
) -> tuple[int, dict[int, float]]:
    """The block at which scrambled copies of prompts are told best from their pseudo-neighbours; each one's figure.

    The figure is d' (the difference of two means over their deviation) of cosines of whitened features, on prompts
    that took no part in the whitening: those that did are all at right angles to each other.

    Args:
        model, layer, tokenizer: as in `make`; the layer's block is the last that may be chosen.
        prompts (sequence of str): background prompts.
        bare (RoutingCode): see `bare_code`.
    """
    _, last = blocks_around(model, layer)
    texts = [_ASKING.split(one)[0] + "?" if _ASKING.search(one) else one for one in prompts]
    copies = [(rewordings(one, 1) or [one])[0] for one in texts]
    others = pseudo_neighbours(tokenizer, bare.weights, texts)
    blocks = [one for one in _CANDIDATES if one <= last] or [last]
    asked = [copies, others, *background_forms(tokenizer, texts)]
    read = [features_at(model, layer, tokenizer, bare, form, blocks) for form in asked]
    _require_finite(*(one for form in read for one in form))
    figures = {}
    for block, (copy, other, *forms) in zip(blocks, zip(*read, strict=True), strict=True):
        near, far = [], []
        for fold in range(_FOLDS):
            held = torch.arange(fold, len(texts), _FOLDS)
            rest = torch.tensor([one for one in range(len(texts)) if one % _FOLDS != fold])
            seen = torch.cat([form[rest] for form in forms])
            turn = whitened(seen, torch.eye(seen.shape[1], device=seen.device))
            own, again, apart = ((one[held] - seen.mean(dim=0)) @ turn for one in (forms[0], copy, other))
            near.append(torch.cosine_similarity(own, again))
            far.append(torch.cosine_similarity(own, apart))
        a, b = torch.cat(near), torch.cat(far)
        figures[block] = float((a.mean() - b.mean()) / ((a.var() + b.var()) / 2).sqrt())
    return max(figures, key=lambda one: figures[one]), figures


def whitened(features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x [H, D] multiplied by the inverse root of the shrunk covariance of `features` [n, H], in n * n * H steps."""
    centred = (features - features.mean(dim=0)).double()
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    values = values**2 / len(centred)
    least = _SHRINKAGE * values.sum() / centred.shape[1]
    along = ((values + least) ** -0.5 - least**-0.5)[:, None] * (vectors @ x.double())
    return (vectors.T @ along + least**-0.5 * x).float()


def rotation(width: int, bits: int, seed: int = 0) -> torch.Tensor:
    """Gaussian float32 [H, D], drawn on the CPU."""
    return torch.randn(width, bits, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def bare_code(tokenizer: Any, weights: torch.Tensor, block: int) -> RoutingCode:
    """A code that can only make features: its mean and projection mean nothing."""
    marks = text_marks(tokenizer, len(weights)).to(weights.device)
    opened, closed = turn_marks(tokenizer)
    none = weights.new_zeros(1)
    return RoutingCode(weights, marks, none, none[:, None], 1, block, math.inf, opened, closed)


def _batches(
    tokenizer: Any, prompts: Sequence[str], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(prompts), 16):
        rows = [Row(ids, len(ids)) for ids in (prompt_ids(tokenizer, one) for one in prompts[start : start + 16])]
        ids, mask, _ = pad(rows, padding_id(tokenizer), device)
        yield ids, mask


def _read(
    model: Any, layer: nn.Module, tokenizer: Any, code: RoutingCode, prompts: Sequence[str], blocks: Sequence[int]
) -> Iterator[list[PromptSums]]:
    """A few prompts at a time: their sums at each of the blocks."""
    every, _ = blocks_around(model, layer)
    for ids, mask in _batches(tokenizer, prompts, device_of(model)):
        found = []
        for hidden in block_inputs(model, [every[one] for one in blocks], input_ids=ids, attention_mask=mask):
            found.append(code.read(None, hidden, ids.to(hidden.device), mask.bool().to(hidden.device)))
        yield found
