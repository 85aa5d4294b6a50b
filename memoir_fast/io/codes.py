"""A memory's routing code and code rows as tensors and plain values, to and from its files."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.io import plausible
from memoir_fast.mask_format import words
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.code_store import kept_bits
from memoir_fast.modules.naming import SPELLINGS, TOKENS, have
from memoir_fast.modules.routing_code import RoutingCode

_CODE = ("weights", "marks", "mean", "projection")
_ROWS = ("codes", "owner", "min_overlap", "room")


def require_bits(rows: torch.Tensor, room: torch.Tensor, width: int, k: int) -> None:
    """ValueError where a code row int32 [R, W] has other bits than it must, by its room int32 [R]."""
    plausible.require_bits(rows[room > 0], width, k, "code")
    plausible.require_bits(rows[room == 0], width, kept_bits(k), "code of a prompt that is kept")
    if bool((room < 0).any()):
        raise ValueError("the room of a code row must be at least 0")


def require_tokens(names: torch.Tensor, rows: int, vocabulary: int) -> None:
    """ValueError where the subjects of R code rows, int32 [R, P, T], are no tokens of V."""
    if names.dtype != torch.int32 or names.shape != (rows, SPELLINGS, TOKENS):
        raise ValueError(f"subjects must be int32 [{rows}, {SPELLINGS}, {TOKENS}], got {names.dtype} {[*names.shape]}")
    if names.numel() and not -1 <= int(names.min()) <= int(names.max()) < vocabulary:
        raise ValueError(f"subjects must be tokens below {vocabulary}, or -1")


def require_subjects(names: torch.Tensor | None, room: torch.Tensor, told: torch.Tensor) -> None:
    """ValueError where rows that lead to an edit have a subject and the edit has none, or the other way round.

    Prompts of other subjects would follow it, or none would. Rows int32 [R] lead to one by their `room`; `told` bool
    [R]: whose edit has a subject.
    """
    found = torch.zeros_like(told) if names is None else have(names)
    if bool(((found != told) & (room > 0)).any()):
        raise ValueError("the code rows of edits with a subject, and of no others, must have one")


class Rows(NamedTuple):
    """The code rows of one edit; see `CodeStore.add`."""

    codes: torch.Tensor
    min_overlap: torch.Tensor
    room: torch.Tensor
    names: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], prefix: str, device: torch.device, rows: Any = ...) -> "Rows":
        """Those of a file, or some of them, by the names of its tensors."""
        codes, least, room = (tensors[f"{prefix}_{name}"][rows].to(device) for name in cls._fields[:3])
        names = tensors.get(f"{prefix}_names")
        return cls(codes, least, room, None if names is None else names[rows].to(device))

    def named(self, prefix: str) -> dict[str, torch.Tensor]:
        """As a file has them."""
        return {f"{prefix}_{name}": one for name, one in self._asdict().items() if one is not None}


def tensors(layer: MemoirLinear) -> dict[str, torch.Tensor]:
    """What a file keeps of how routing codes are made, and of the rows; nothing where masks route.

    code_weights float32 [V], code_marks uint8 [V], code_mean float32 [H], code_projection float32 [H, D], rows_codes
    int32 [R, W], and int32 [R] each rows_owner, rows_min_overlap and rows_room; where rows have subjects, rows_names
    int32 [R, P, T].
    """
    if layer.code is None or layer.codes is None:
        return {}
    made = {f"code_{name}": getattr(layer.code, name) for name in _CODE}
    return made | {f"rows_{name}": value for name, value in layer.codes.state().items()}


def values(layer: MemoirLinear) -> dict[str, Any] | None:
    """What a routing code has besides its tensors; None where masks route."""
    code = layer.code
    if code is None:
        return None
    return {
        "k": code.k,
        "block": code.block,
        "fade": code.fade,
        "opened": [list(one) for one in code.opened],
        "closed": [list(one) for one in code.closed],
    }


def read_code(saved: dict[str, torch.Tensor], routing: dict[str, Any], device: torch.device) -> RoutingCode:
    """The routing code of a saved memory, its tensors on `device`."""
    weights, marks, mean, projection = (saved[f"code_{name}"].to(device) for name in _CODE)
    return RoutingCode(
        weights,
        marks,
        mean,
        projection,
        routing["k"],
        routing["block"],
        routing["fade"],
        routing["opened"],
        routing["closed"],
    )


def fill(layer: MemoirLinear, saved: dict[str, torch.Tensor]) -> None:
    """Gives a layer that routes by codes the saved rows."""
    if layer.codes is not None:
        names = {"names": saved["rows_names"]} if "rows_names" in saved else {}
        layer.codes.restore({name: saved[f"rows_{name}"] for name in _ROWS} | names, layer.min_overlap)


def require_consistent(saved: dict[str, torch.Tensor], routing: Any, edits: Mapping[int, Edit]) -> int:
    """D of the routing codes.

    Raises:
        KeyError, TypeError, ValueError: a tensor or a value is missing, of another type or shape, rows belong to
            no edit of `edits`, or have no subject where the edit has one.
    """
    width, hidden = saved["code_projection"].shape[1], len(saved["code_mean"])
    vocabulary, rows = len(saved["code_weights"]), len(saved["rows_codes"])
    expected = {
        "code_weights": (torch.float32, (vocabulary,)),
        "code_marks": (torch.uint8, (vocabulary,)),
        "code_mean": (torch.float32, (hidden,)),
        "code_projection": (torch.float32, (hidden, width)),
        "rows_codes": (torch.int32, (rows, words(width))),
        **{f"rows_{name}": (torch.int32, (rows,)) for name in _ROWS[1:]},
    }
    if "rows_names" in saved:
        require_tokens(saved["rows_names"], rows, vocabulary)
    for name, (dtype, shape) in expected.items():
        if saved[name].dtype != dtype or saved[name].shape != shape:
            raise ValueError(f"{name} must be {dtype} {list(shape)}, got {saved[name].dtype} {list(saved[name].shape)}")
    if not 1 <= routing["k"] <= width or routing["block"] < 0 or not 0 < routing["fade"] < float("inf"):
        raise ValueError(f"routing must have 1 <= k <= {width}, block >= 0 and fade > 0, got {routing}")
    if not all(isinstance(one, int) and one >= 0 for mark in (*routing["opened"], *routing["closed"]) for one in mark):
        raise ValueError("routing's marks of turns must be lists of token ids")
    leads = saved["rows_room"] > 0
    owners = saved["rows_owner"].tolist()
    if set(saved["rows_owner"][leads].tolist()) != edits.keys() or not set(owners) <= edits.keys():
        raise ValueError(f"the code rows must belong to the {len(edits)} edits, and each edit must have one")
    told = torch.tensor([bool(edits[one].subject) for one in owners], dtype=torch.bool)
    require_subjects(saved.get("rows_names"), saved["rows_room"], told)
    return width
