"""`Pieces`: the sequences of a pass that holds several in one row, each of which is followed by itself."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from memoir_fast.hf.call import Call
from memoir_fast.hf.following import Following
from memoir_fast.hf.overrides import Overrides
from memoir_fast.hf.packed import Span
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.routed import Routed, first_alike, follows_nothing
from memoir_fast.modules.views import Generation, View


@dataclass
class Piece:
    """One sequence of a row, or what of it is in this pass."""

    span: Span
    asked: Overrides
    call: Call
    generation: Generation | None = None
    """Whose view of the memory it has; None: the pass's."""
    request: Any = None
    """Whose piece it is, in continuous batching: a `Request`, which its state is kept with."""
    reads: bool = False
    """Whether the pass decides on it."""

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Its tokens [1, s, ...] of a pass's, [B, S, ...]."""
        row, start, stop = self.span
        return x[row : row + 1, start:stop]


class _Read(NamedTuple):
    piece: Piece
    routed: Routed
    view: View


class Pieces:
    """The sequences of one pass, in the order of its tokens.

    Args:
        pieces: each of them; they lie one behind the other. Tokens of none follow no edit.
        following: what is done for the sequences of a pass.
        layer: the edited layer.
    """

    def __init__(self, pieces: Sequence[Piece], following: Following, layer: MemoirLinear) -> None:
        self._pieces, self._following, self._layer = pieces, following, layer
        self.decided = False
        """Whether `decide` was called."""

    def decide(self, call: Call, x: torch.Tensor) -> None:
        """Reads prompts, and goes on where the model speaks: x [B, S, D or H] at the place where routes are made."""
        ids = None if self._following.site is None else self._following.site.ids(call, x.shape[:2]).long()
        for piece in self._pieces:
            tokens, own, asked = piece.of(x), piece.call, piece.asked
            own.ids = None if ids is None else piece.of(ids)
            piece.reads = not self._following.speaking(own, tokens.shape[1], asked)
            with self._seen_by(piece):
                own.routed = (self._following.read if piece.reads else self._following.say)(own, tokens, asked)
            if piece.request is not None:
                piece.request.state = own.state
        self.decided = True

    @property
    def last(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """What was decided for those whose prompts this pass has read: edits [N] and overlaps [N]; None: for none."""
        decided = [piece.call.last for piece in self._pieces if piece.reads and piece.call.last is not None]
        if not decided:
            return None
        overlaps = [overlap for _, overlap in decided if overlap is not None]  # of those that were not forced
        edits = torch.cat([edit for edit, _ in decided])
        return edits, torch.cat(overlaps) if len(overlaps) == len(decided) else None

    def routed(self, x: torch.Tensor) -> Routed | None:
        """Where the tokens of layer inputs [B, S, D] read the memory, each as a sequence of its own; None: nowhere."""
        groups: dict[int, list[_Read]] = {}
        for piece in self._pieces:
            if piece.call.routed is None or follows_nothing(piece.call.routed.route):
                continue
            with self._seen_by(piece):
                view = self._layer.view
            piece.call.state.look_again(view.store)  # a change since then has copied what this pass reads
            routed = piece.call.state.routed(piece.call.routed.helped)
            if routed is not None:
                rests = piece.call.routed.route < 0  # the target has been said
                routed = routed._replace(route=torch.where(rests, -1, routed.route))
                groups.setdefault(id(view.memory.table), []).append(_Read(piece, routed, view))
        joined = [self._joined(x, found) for found in groups.values()]
        return joined[0]._replace(others=tuple(joined[1:])) if joined else None

    def edits(self, x: torch.Tensor) -> torch.Tensor:
        """The edit that each token follows, int32 [B * S], or -1."""
        return self._spread(x, [(piece, piece.call.state.route) for piece in self._pieces])

    def _joined(self, x: torch.Tensor, found: list[_Read]) -> Routed:
        """The routes of all tokens, of some of the pieces, which read one table."""
        rows = torch.cat([routed.rows for _, routed, _ in found])
        stores = list({id(view.store): None for _, _, view in found})  # each has pages of its own for an edit
        edits = [piece.call.state.route.long() + (stores.index(id(view.store)) << 32) for piece, _, view in found]
        first = first_alike(torch.cat(edits))
        places = []
        for place, (piece, routed, _) in enumerate(found):
            own = torch.where(routed.route >= 0, first[place : place + 1], -1)
            if routed.helped is not None:
                own = torch.where(routed.helped.to(own.device)[0], own, -1)
            places.append((piece, own))
        return Routed(rows, self._spread(x, places), each_token=True, memory=found[0].view.memory).to(x.device)

    def _spread(self, x: torch.Tensor, values: list[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
        """int32 [B * S]: each piece's value, int32 [1 or s], at its tokens; -1 at tokens of no piece."""
        spread = torch.full(x.shape[:2], -1, dtype=torch.int32, device=values[0][1].device)
        for piece, value in values:
            piece.of(spread).copy_(value.expand(1, piece.span[2] - piece.span[1]))
        return spread.flatten()

    def _seen_by(self, piece: Piece) -> AbstractContextManager[Any]:
        return nullcontext() if piece.generation is None else self._layer.views.seen_by(piece.generation)


class SeveralInRow:
    """Left on a cache that was filled with several sequences in a row, of which none can be gone on with."""

    length = 0

    def __init__(self, owner: int) -> None:
        self.owner = owner

    def select(self, rows: torch.Tensor) -> None:
        """Nothing is known of rows."""

    def repeat(self, times: int) -> None:
        """Nothing is known of rows."""

    def crop(self, removed: int) -> None:
        """Nothing is known of positions."""


def packed_pieces(spans: Sequence[Span], asked: Overrides) -> Iterator[Piece]:
    """The pieces of a packed batch, each of which is a whole sequence."""
    for number, span in enumerate(spans):
        yield Piece(span, asked.of_row(number, len(spans)), Call())
