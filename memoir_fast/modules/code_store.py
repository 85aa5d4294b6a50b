"""`CodeStore`: the routing codes of all edits, each with its edit and its own threshold."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from memoir_fast import ops
from memoir_fast.checks import readable, tensor
from memoir_fast.mask_format import BITS, pack, unpack, words
from memoir_fast.modules import growing
from memoir_fast.modules.naming import SPELLINGS, TOKENS, have, named
from memoir_fast.modules.search import best_row, shared_bits

_FIRST_CAPACITY = 64
_OF_NAMED = 0.86  # least threshold of a row with a subject, in shares of that of the others
_SHARED_AT_ONCE = 1 << 24  # overlaps of prompts with all rows
_AT_ONCE, _TOGETHER = 1 << 20, 64  # numbers of shared bits, codes: so many stay in a processor's cache


def least_of_named(bits: int) -> int:
    """The least threshold of a row with a subject, in bits, where that of the others is `bits`."""
    return max(1, round(_OF_NAMED * bits))


def kept_bits(k: int) -> int:
    """Bits set in the row of a prompt that an edit keeps: of its code's k one in 32 is left out, and one at least.

    Where that prompt is taught by another edit, the row of that one is then nearer to all that is like both.
    """
    return k - max(1, k // 32)


def kept(codes: torch.Tensor) -> torch.Tensor:
    """Codes of prompts that an edit keeps, int32 [n, W] with k bits each -> their rows, with `kept_bits(k)` bits.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.code_store import kept
        >>> kept(torch.tensor([[0b1011, 0, 0, 0]]).int()).tolist()
        [[10, 0, 0, 0]]
    """
    bits = unpack(codes, BITS * codes.shape[1])
    rank, count = bits.int().cumsum(dim=1), bits.sum(dim=1, keepdim=True)
    out = (count // 32).clamp(min=1)  # spread over the code: every (k // out)th of its bits
    every = (count // out).clamp(min=1)
    return pack(bits & ~((rank % every == 1 % every) & (rank <= every * out)))


class CodeStore(nn.Module):
    """Code rows, several of which may belong to one edit, and the search among them.

    Buffers double when they are full; see `growing` for when that copies none. A row that an edit has left is zeros and
    belongs to none (owner -1). A row with `room` 0 is that of a prompt that its edit keeps: a prompt that is nearest to
    it follows no edit at all. A row with a subject is there for prompts that name it, and its threshold is lower.

    Args:
        width (int): D, bits of a code.
        k (int): bits set in a code.
        min_overlap (int): the least threshold of any row, in bits.
        device (torch.device, optional): Default: the CPU.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.code_store import CodeStore
        >>> store = CodeStore(64, k=2, min_overlap=1)
        >>> store.add(7, torch.tensor([[3, 0, 0, 0]]).int(), torch.tensor([2]).int(), torch.tensor([2]).int())
        >>> store.match(torch.tensor([[[1, 0, 0, 0], [3, 0, 0, 0]], [[1, 0, 0, 0], [4, 0, 0, 0]]]).int())
        (tensor([ 7, -1], dtype=torch.int32), tensor([2, 1], dtype=torch.int32))
    """

    codes: torch.Tensor
    owner: torch.Tensor
    min_overlap: torch.Tensor
    room: torch.Tensor
    count: torch.Tensor
    names: torch.Tensor | None

    def __init__(self, width: int, k: int, min_overlap: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.width, self.k, self.least = width, k, min_overlap
        self.register_buffer("codes", torch.zeros((_FIRST_CAPACITY, words(width)), dtype=torch.int32, device=device))
        for name in ("owner", "min_overlap", "room"):
            self.register_buffer(name, torch.full((_FIRST_CAPACITY,), -1, dtype=torch.int32, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32, device=device))
        self.register_buffer("names", None)  # int32 [C, P, T], see `naming`; None as long as no row has a subject
        self._rows = 0  # the host's copy of count
        self._dead = 0

    def __len__(self) -> int:
        """Rows in use, those that edits have left included."""
        return self._rows

    @property
    def live(self) -> int:
        """Rows that belong to an edit."""
        return self._rows - self._dead

    @property
    def leading(self) -> torch.Tensor:
        """Which rows in use lead to an edit, bool [rows]: not those of prompts that are kept."""
        return (self.owner[: self._rows] >= 0) & (self.room[: self._rows] > 0)

    @property
    def keeps(self) -> bool:
        """Whether any row is that of a prompt that is kept. Waits for the device."""
        return bool(((self.owner[: self._rows] >= 0) & (self.room[: self._rows] == 0)).any())

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def set_min_overlap(self, bits: int) -> None:
        """Sets the least threshold of any row, in bits; rows that were raised above it stay so.

        That of rows with a subject is lower in proportion.
        """
        raised = self.min_overlap > self.least_of(self.names)
        self.least = bits
        least = self.least_of(self.names)
        self.min_overlap.copy_(torch.where(raised, torch.maximum(self.min_overlap, least), least))

    def least_of(self, names: torch.Tensor | None) -> torch.Tensor:
        """The least threshold of rows with these subjects int32 [n, P, T], int32 [n], or one for all."""
        least = torch.full((), self.least, dtype=torch.int32, device=self.owner.device)
        return least if names is None else torch.where(have(names), least_of_named(self.least), least)

    def add(
        self,
        edit_id: int | torch.Tensor,
        codes: torch.Tensor,
        min_overlap: torch.Tensor,
        room: torch.Tensor,
        names: torch.Tensor | None = None,
    ) -> None:
        """Adds rows of an edit, or of several.

        Args:
            edit_id (int or Tensor): whose they are; int32 [n], each row's.
            codes (Tensor): int32 [n, W].
            min_overlap (Tensor): int32 [n], their thresholds in bits.
            room (Tensor): int32 [n], up to where `raise_where` may raise each threshold, in bits; 0: prompts that are
                nearest to this row follow nothing.
            names (Tensor, optional): int32 [n, P, T], the subjects that prompts must name; see `naming`. Default: none.
        """
        tensor("codes", codes, torch.int32, "n W", W=self.codes.shape[1])
        if names is not None:
            names = names.to(self.owner.device)
            if self.names is None and not have(names).any():
                names = None
        if names is not None and self.names is None:
            shape = (len(self.owner), SPELLINGS, TOKENS)
            self.names = torch.full(shape, -1, dtype=torch.int32, device=self.owner.device)
        first, last = self._rows, self._rows + len(codes)
        if last > len(self.codes):
            self._grow(max(last, 2 * len(self.codes)))
        self.codes[first:last], self.owner[first:last] = codes.to(self.codes.device), edit_id
        self.min_overlap[first:last] = torch.maximum(min_overlap.to(self.owner.device), self.least_of(names))
        self.room[first:last] = room
        if self.names is not None:
            self.names[first:last] = -1 if names is None else names
        self.count.fill_(last)
        self._rows = last

    def remove(self, edit_id: int | Collection[int], before: int | None = None) -> None:
        """Takes the rows of an edit, or of several, out, or only those with a number below `before`."""
        rows = self._rows_of(edit_id, before)
        self.codes[rows], self.owner[rows] = 0, -1
        self._dead += len(rows)
        if self._dead > max(_FIRST_CAPACITY, self._rows // 2):
            self._close_ranks()

    def undo_from_here(self, replaced: Collection[int] = ()) -> Callable[[], None]:
        """What makes it as it is now, to the bit, after rows were added, and those of `replaced` edits taken out."""
        tables, given = dict(self._buffers), self._rows_of(replaced)
        codes, rows, dead, least = self.codes[given], self._rows, self._dead, self.least
        kept = {name: one.clone() for name, one in tables.items() if one is not None and name != "codes"}

        def undo() -> None:
            self._buffers.update(tables)
            for name, values in kept.items():
                getattr(self, name).copy_(values)
            self.codes[given] = codes
            self.codes[rows:] = 0
            self._rows, self._dead, self.least = rows, dead, least

        return undo

    def truncate(self, rows: int) -> None:
        """Forgets the rows after the first `rows`: undoes an `add`."""
        self.codes[rows:], self.owner[rows:] = 0, -1
        self.count.fill_(rows)
        self._rows = rows
        self._dead = int((self.owner[:rows] < 0).sum())

    def rows_of(self, edit_id: int) -> torch.Tensor:
        """The numbers of an edit's rows, int64 [n]."""
        return (self.owner == edit_id).nonzero().flatten()

    def raise_where(self, codes: torch.Tensor, edit_id: int = -1, among: torch.Tensor | None = None) -> None:
        """Raises thresholds of rows that codes int32 [n, W] would match, within room; those of `edit_id` stay.

        So do those of rows with a subject, which tells other prompts apart. `among` bool [edits]: only rows of these
        edits. Default: of all.
        """
        if not self._rows or not len(codes):
            return
        shared = _most_shared(codes, self.codes[: self._rows])
        least, owner = self.min_overlap[: self._rows], self.owner[: self._rows]
        wanted = torch.minimum(shared + 1, self.room[: self._rows])
        stays = owner == edit_id if among is None else (owner == edit_id) | ~self._owned(among)[: self._rows]
        if self.names is not None:
            stays = stays | have(self.names[: self._rows])
        least.copy_(torch.where(stays, least, torch.maximum(least, wanted)))

    def match(
        self, query: torch.Tensor, among: torch.Tensor | None = None, words: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int32 [B, Q, W] -> best edit int32 [B] or -1, overlap in bits int32 [B].

        Any of the Q codes of a prompt may match; that of the largest overlap decides, the first of them on ties.
        Without a match, the overlap is the largest with any row; of a prompt that is nearest to one that is kept, it is
        that with this one. `among` bool [edits]: only rows of these edits are there. Default: all. `words` bool
        [B, 1 + V]: the prompts' tokens, see `naming.present`; they must be given where rows have subjects.
        """
        rows = None if among is None else self._owned(among)
        if self.names is None:
            row, overlap = best_row(query.flatten(0, 1), self.codes, self.count, self.min_overlap, rows)
            row, overlap = row.view(query.shape[:2]), overlap.view(query.shape[:2])
        else:
            row, overlap = self._best_named(query, rows, words)
        return ops.code_route(row, overlap, self.owner, self.room)

    def _best_named(
        self, query: torch.Tensor, among: torch.Tensor | None, words: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `best_row`, of codes int32 [B, Q, W] among rows bool [C] whose subject is named, int32 [B, Q]."""
        if words is None or self.names is None:
            raise ValueError("edits have subjects: which prompts name them, their tokens tell, and none were given")
        if not self._rows:
            return query.new_full(query.shape[:2], -1), query.new_zeros(query.shape[:2])
        if not readable(query):
            return self._among_named(query, among, words)
        found = best_row(query.flatten(0, 1), self.codes, self.count, self.min_overlap, among)
        row, overlap = (one.view(query.shape[:2]) for one in found)
        hit = row[row >= 0].unique()
        if not len(hit):
            return row, overlap
        place = torch.searchsorted(hit, row.clamp(min=hit[0]))
        missed = ((row >= 0) & ~named(self.names[hit], words).gather(1, place)).any(dim=1).nonzero().flatten()
        if len(missed):  # the best row is there for others: which of all are, has to be seen
            row[missed], overlap[missed] = self._among_named(query[missed], among, words[missed])
        return row, overlap

    def _among_named(
        self, query: torch.Tensor, among: torch.Tensor | None, words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_best_named`, by the overlaps with all rows, of so many prompts at a time; no device is waited for."""
        size = max(1, _SHARED_AT_ONCE // (query.shape[1] * self._rows))
        parts = [self._some_named(*some, among) for some in zip(query.split(size), words.split(size), strict=True)]
        row, overlap = (torch.cat(one) for one in zip(*parts, strict=True))
        return row, overlap

    def _some_named(
        self, query: torch.Tensor, words: torch.Tensor, among: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.names is not None
        shared = shared_bits(query.flatten(0, 1), self.codes[: self._rows]).unflatten(0, query.shape[:2])
        there = self.owner[: self._rows] >= 0
        if among is not None:
            there = there & among[: self._rows]
        shared = torch.where(there, shared, 0)
        reach = (shared >= self.min_overlap[: self._rows]) & there
        names = self.names[: self._rows]
        if readable(reach):  # few rows are near
            near = reach.flatten(0, 1).any(dim=0).nonzero().flatten()
            reach[..., near] &= named(names[near], words)[:, None]
        else:
            reach = reach & named(names, words)[:, None]
        best = torch.add(shared, reach, alpha=self.k + 1).max(dim=2, keepdim=True).indices
        row = torch.where(reach.gather(2, best), best, -1)[..., 0]
        return row.int(), shared.gather(2, best)[..., 0]

    def _rows_of(self, edit_id: int | Collection[int], before: int | None = None) -> torch.Tensor:
        """The numbers of the rows, of the first `before`, that are of an edit, or of several, int64 [n]."""
        owner, ids = self.owner[: self._rows][:before], [edit_id] if isinstance(edit_id, int) else [*edit_id]
        if len(ids) < 2:  # much quicker than looking each owner up among several
            return (owner == ids[0] if ids else owner[:0]).nonzero().flatten()
        return torch.isin(owner, torch.tensor(ids, dtype=torch.int32, device=owner.device)).nonzero().flatten()

    def _owned(self, edits: torch.Tensor) -> torch.Tensor:
        """The rows of some edits, bool [edits] -> bool [C]. What rows that are not in use give means nothing."""
        return edits[self.owner.clamp(min=0, max=len(edits) - 1).long()] & (self.owner >= 0)

    def overlaps(self, query: torch.Tensor) -> torch.Tensor:
        """Codes int32 [B, W] -> the bits that each shares with each row that leads to an edit, int32 [B, rows].

        Where some of these have no subject, with those alone: prompts that name none reach no others.
        """
        rows = self.leading
        if self.names is not None and bool((without := rows & ~have(self.names[: self._rows])).any()):
            rows = without
        return shared_bits(query, self.codes[: self._rows][rows])

    def best_overlap(self, query: torch.Tensor) -> torch.Tensor:
        """Codes int32 [B, W] -> the most bits that each shares with a row that leads to an edit, int32 [B]; 0: none."""
        among = None
        if self.keeps:
            among = torch.zeros(len(self.codes), dtype=torch.bool, device=self.codes.device)
            among[: self._rows] = self.leading
        return best_row(query.contiguous(), self.codes, self.count, 1, among)[1]

    def state(self) -> dict[str, torch.Tensor]:
        """The rows of live edits, for a file: codes, owner, min_overlap and room, and names where one has a subject."""
        live = (self.owner[: self._rows] >= 0).nonzero().flatten()
        found = {name: getattr(self, name)[live] for name in ("codes", "owner", "min_overlap", "room")}
        if self.names is not None and bool(have(names := self.names[live]).any()):
            found["names"] = names
        return found

    def restore(self, state: dict[str, torch.Tensor], least: int) -> None:
        """Fills an empty store with what `state` gave; `least` is the least threshold of any row, in bits.

        ValueError where it is not empty.
        """
        if self._rows:
            raise ValueError(f"only an empty store can be restored, this one has {self._rows} rows")
        self.least = least
        self.add(-1, state["codes"], state["min_overlap"], state["room"], state.get("names"))
        self.owner[: self._rows] = state["owner"].to(self.owner.device)

    def _grow(self, capacity: int) -> None:
        self._buffers.update(self._tables(self._rows, capacity))  # all of them, or none

    def _tables(self, rows: int, capacity: int) -> dict[str, torch.Tensor]:
        fill = {"codes": 0, "owner": -1, "min_overlap": -1, "room": -1, **({} if self.names is None else {"names": -1})}
        return {name: growing.grown(getattr(self, name), rows, capacity, one) for name, one in fill.items()}

    def _close_ranks(self) -> None:
        """Moves the live rows together, into buffers of their own: another view may hold these."""
        kept, tables = self.state(), self._tables(0, len(self.codes))
        rows = len(kept["owner"])
        for name, values in kept.items():
            tables[name][:rows] = values
        tables["count"] = torch.full_like(self.count, rows)
        found = tables if "names" in kept else {**tables, "names": None}  # the last row with a subject has gone
        try:
            self._take(found, rows)
        except BaseException:
            self._take(found, rows)
            raise

    def _take(self, tables: Mapping[str, torch.Tensor | None], rows: int) -> None:
        self._buffers.update(tables)
        self._rows, self._dead = rows, 0

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        if prefix + "codes" in state_dict and len(state_dict[prefix + "codes"]) != len(self.codes):
            self._rows = 0
            self._grow(len(state_dict[prefix + "codes"]))
        if prefix + "codes" in state_dict:
            names = state_dict.get(prefix + "names")
            self.names = None if names is None else torch.empty_like(names, device=self.owner.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._rows = int(self.count)
        self._dead = int((self.owner[: self._rows] < 0).sum())

    def extra_repr(self) -> str:
        return f"rows={self._rows}, width={self.width}, k={self.k}"


def _most_shared(codes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The most bits that each of the rows int32 [R, W] shares with one of the codes int32 [n, W], int32 [R]."""
    some = codes.split(_TOGETHER)
    found = []
    for part in rows.split(_AT_ONCE // len(some[0])):
        most = shared_bits(some[0], part).amax(dim=0)
        for more in some[1:]:
            most = torch.maximum(most, shared_bits(more, part).amax(dim=0))
        found.append(most)
    return torch.cat(found)
