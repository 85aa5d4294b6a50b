"""What the edits of pages with room read, as tensors, to and from a memory's files."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.reads import Reads
from memoir_fast.io.mapped import pieces
from memoir_fast.modules import MemoirLinear


def tensors(memoir: EditedModel) -> dict[str, torch.Tensor]:
    """Those that a file keeps; nothing where there are none.

    reads bfloat16 [T, k], of one edit behind the other, and reads_of int32 [E, 3]: an edit's id, how many of the T
    tokens are its, and whether its row was closed by the end token. Edits on pages that are full are left out.
    """
    store, most = memoir.layer.store, memoir.config.page_edits
    pages = {edit_id: int(store.page[edit_id]) for edit_id in memoir.edits.reads}
    room = {page for page in set(pages.values()) if most is None or store.written(page) < most}
    kept = {one: memoir.edits.reads[one] for one, page in sorted(pages.items()) if page in room}
    if not kept:
        return {}
    whose = [[edit_id, len(reads.inputs), int(reads.stop)] for edit_id, reads in kept.items()]
    return {
        "reads": torch.cat([reads.inputs for reads in kept.values()]),
        "reads_of": torch.tensor(whose, dtype=torch.int32),
    }


def read(saved: Mapping[str, torch.Tensor], layer: MemoirLinear) -> dict[int, Reads]:
    """What `tensors` gave, by the edits' ids, for a layer of that k; nothing where there are further layers.

    ValueError where it is of another k.
    """
    if "reads" not in saved or layer.further:
        return {}
    _require_columns(saved["reads"], layer)
    whose = saved["reads_of"].tolist()
    every = pieces(saved["reads"], sizes=[tokens for _, tokens, _ in whose])
    return {edit_id: Reads(inputs.clone(), bool(stop)) for (edit_id, _, stop), inputs in zip(whose, every, strict=True)}


def require_consistent(saved: Mapping[str, torch.Tensor], edits: Collection[int]) -> None:
    """KeyError, ValueError where what a file says was read is no numbers of its edits."""
    if "reads" not in saved and "reads_of" not in saved:
        return
    whose = saved["reads_of"]
    _require_inputs(saved["reads"])
    if whose.dtype != torch.int32 or whose.dim() != 2 or whose.shape[1] != 3 or not len(whose):
        raise ValueError(f"reads_of must be int32 [E, 3], got {whose.dtype} {list(whose.shape)}")
    ids, tokens, stop = whose.long().T
    if int(tokens.min()) < 1 or int(tokens.sum()) != len(saved["reads"]):
        raise ValueError(f"reads_of must share out the {len(saved['reads'])} tokens of reads")
    if not set(stop.tolist()) <= {0, 1}:
        raise ValueError("reads_of must say 0 or 1 of the end token")
    if len(ids.unique()) < len(ids) or not set(ids.tolist()) <= set(edits):
        raise ValueError("reads_of must name live edits, each once")


def of_record(values: Mapping[str, Any], given: Mapping[str, torch.Tensor], layer: MemoirLinear) -> Reads | None:
    """What a journal's record says that its edit reads; None as `read` gives nothing. ValueError, KeyError as above."""
    if "reads" not in given or layer.further:
        return None
    _require_inputs(given["reads"])
    _require_columns(given["reads"], layer)
    if not isinstance(values["stop"], bool):
        raise ValueError(f"stop must be true or false, got {values['stop']!r}")
    return Reads(given["reads"], values["stop"])


def _require_columns(inputs: torch.Tensor, layer: MemoirLinear) -> None:
    if inputs.shape[1] != layer.k:
        raise ValueError(f"reads must be of k = {layer.k} columns, got {inputs.shape[1]}")


def _require_inputs(inputs: torch.Tensor) -> None:
    if inputs.dtype != torch.bfloat16 or inputs.dim() != 2 or not len(inputs):
        raise ValueError(f"reads must be bfloat16 [tokens, k], got {inputs.dtype} {list(inputs.shape)}")
    squares = torch.stack([piece.float().square().sum() for piece in pieces(inputs)])
    if not squares.sum().isfinite():
        raise ValueError("reads must be finite, and their squares too")
