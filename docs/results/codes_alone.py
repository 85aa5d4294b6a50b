"""Memories whose edits have codes and thresholds, and learned nothing: what is routed where, without the hours."""

from collections.abc import Iterable, Sequence

import torch

from memoir_fast import Edit, Memoir
from memoir_fast.core import pages
from memoir_fast.core.routing_code import asked_by
from memoir_fast.editing.code_rows import code_rows
from memoir_fast.mask_format import pack


def store(memoir: Memoir, edits: Iterable[Edit]) -> dict[str, int]:
    """Makes these the edits of a memory, in place of all others; their ids by their prompts."""
    layer = memoir.layer
    for edit_id in list(memoir.edits):
        memoir.edits.delete(edit_id)
    mask = torch.zeros(1, layer.store.width, dtype=torch.bool)
    mask[:, : layer.store.k] = True
    for edit in edits:
        rows = code_rows(memoir.model, layer, memoir.tokenizer, edit, [one.prompt for one in memoir.edits.values()])
        page, _ = pages.choose(layer, 10**9, lambda _: None)
        with layer.changing(page=page, rows=True), memoir.edits.put(edit, pack(mask)[0], page, rows):
            pass
    return {edit.prompt: edit_id for edit_id, edit in memoir.edits.items()}


def routes(memoir: Memoir, prompts: Sequence[str]) -> list[int]:
    """The edit that each prompt is routed to; -1 for none."""
    assert memoir.layer.code is not None
    asked = asked_by(memoir.model, memoir.layer, memoir.tokenizer, memoir.layer.code, prompts)
    return memoir.layer.search(asked.codes, None, asked.words)[0].tolist()
