"""How far prompts lie from the threshold of the edit of their own case."""

from collections.abc import Sequence

import torch

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.routing_code import Asked, asked_by
from memoir_fast.core.threshold import prompt_masks
from memoir_fast.io.readers import Case
from memoir_fast.mask_format import unpack
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.naming import named
from memoir_fast.modules.search import shared_bits

KINDS = ("edits", "paraphrases", "neighbours")
"""Own prompts of the edits, their paraphrases, their neighbours."""

_AT_ONCE = 256


def margins(memoir: EditedModel, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Per kind of prompt: its overlap ratio with the edit of its case, less that edit's own threshold.

    With routing codes, an edit has several rows: the one that the prompt lies farthest above counts. A prompt that does
    not name the subject of its case's edit is at -1.

    Both are in shares of k bits, so a margin lies in [-1, 1). At 0 or above, the prompt reaches the edit's threshold;
    it is still routed elsewhere where it shares more with another edit. The prompts come in the order of the cases.
    Cases whose prompt is not stored are left out; a kind without prompts is an empty list.

    Args:
        memoir (EditedModel): the model.
        cases (sequence of Case): whose prompts to compare.
    """
    ids = {edit.prompt: edit_id for edit_id, edit in memoir.edits.items()}
    prompts = [
        (kind, ids[case.prompt], prompt)
        for case in cases
        if case.prompt in ids
        for kind, texts in zip(KINDS, _texts(case), strict=True)
        for prompt in texts
    ]
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    if not prompts:
        return found
    layer, texts = memoir.layer, [prompt for _, _, prompt in prompts]
    own = torch.tensor([edit_id for _, edit_id, _ in prompts], device=layer.store.masks.device)
    if layer.code is None or layer.codes is None:
        distances = _by_mask(layer, prompt_masks(memoir, texts), own)
    else:
        distances = []
        for start in range(0, len(texts), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            asked = asked_by(memoir.model, layer, memoir.tokenizer, layer.code, texts[some])
            distances += _by_codes(layer.codes, asked, own[some])
    for (kind, _, _), distance in zip(prompts, distances, strict=True):
        found[kind].append(distance)
    return found


def _by_mask(layer: MemoirLinear, masks: torch.Tensor, own: torch.Tensor) -> list[float]:
    # A prompt with its own edit alone: with all of them, the work would grow with the square of their number. Not all
    # prompts at once, because unpacked bits take 32 times the room.
    both = (masks & layer.store.masks[own]).split(_AT_ONCE)
    shared = torch.cat([unpack(part, layer.in_features).sum(dim=1) for part in both])
    return ((shared - layer.store.min_overlap[own]).double() / layer.k).tolist()


def _by_codes(store: CodeStore, asked: Asked, own: torch.Tensor) -> list[float]:
    """With the row of its edit that it is nearest to, measured from that row's threshold."""
    rows = slice(len(store))
    distances = shared_bits(asked.codes[:, 0].contiguous(), store.codes[rows]) - store.min_overlap[rows]
    others = (own[:, None] != store.owner[rows]) | ~store.leading
    if store.names is not None:
        others |= ~named(store.names[rows], asked.words)
    found: list[float] = (distances.masked_fill(others, -store.k).amax(dim=1).double() / store.k).tolist()
    return found


def _texts(case: Case) -> tuple[tuple[str, ...], ...]:
    """The case's prompts, a tuple per kind."""
    return (case.prompt,), case.paraphrases, tuple(prompt for prompt, _ in case.neighbours)
