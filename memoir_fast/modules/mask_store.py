"""`MaskStore`: the masks, pages and thresholds of all edits, and the search among them."""

import itertools
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from memoir_fast import ops
from memoir_fast.checks import tensor
from memoir_fast.distributed.row_parallel import Part
from memoir_fast.errors import StoreFullError, UnknownEditError
from memoir_fast.mask_format import words
from memoir_fast.modules import growing, huge_pages
from memoir_fast.modules.search import best_row, shared_bits

_FIRST_CAPACITY = 64
_MOST_TOKENS = 2**30  # more than any sequence has, and than any target
_MOST_SUCCESSIONS = 8
_stamps = itertools.count(1)


def _bits(value: int) -> int:
    if value < 1:
        raise ValueError(f"min_overlap must be at least 1, got {value}")
    return value


class MaskStore(nn.Module):
    """All edits' packed masks, pages and thresholds; an edit's id is its row, and is never given to another edit.

    Buffers hold more rows than there are edits and double when they are full; see `growing` for when that copies none.
    `count`, the number of rows in use, is a device tensor too: a search asks nothing of the host.
    A deleted edit leaves a row of zeros, which shares no bit with anything. `min_overlap` int32 [C] is the bits that a
    query must share with each row to match it; `set_min_overlap` changes it. `page` int32 [C] is on which page of the
    residual memory each edit lives; its columns are those of its mask. `target_tokens` int32 [C, 2] is how many tokens
    the memory helps to say, in a plain prompt and in a chat; 0: all that are said. `bank` and `namesake` are what
    `modules.banks` tells by which edits a prompt may follow, where some are in banks.

    Args:
        width (int): D, bits of a mask.
        k (int): columns of a mask.
        max_edits (int, optional): refuse to hold more than this; buffers of this size are then made at once and never
            move, which a captured CUDA graph needs. Default: None, grow.
        device (torch.device, optional): where the buffers lie. Default: the CPU.
        min_overlap (int, optional): the threshold of rows that get none of their own, in bits. Default: k, all of them.

    Raises:
        ValueError: `max_edits` or `min_overlap` is below 1.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import MaskStore, TopHash
        >>> store, (masks, columns) = MaskStore(64, k=8), TopHash(64, k=8)(torch.randn(2, 5, 64))
        >>> [store.append(mask) for mask in masks]
        [0, 1]
        >>> store.match(masks)[0].tolist()
        [0, 1]
        >>> torch.equal(store.rows(torch.tensor([1, 0]).int()), columns.flip(0))
        True
    """

    masks: torch.Tensor
    page: torch.Tensor
    min_overlap: torch.Tensor
    target_tokens: torch.Tensor
    count: torch.Tensor
    bank: torch.Tensor | None
    """int32 [C], the number of each edit's bank, 0 for none; of a deleted edit ~number. None before any is in one."""
    namesake: torch.Tensor | None
    """int32 [C], the same number for edits of one prompt in several banks, that of one of them. None as `bank`."""

    def __init__(
        self,
        width: int,
        k: int,
        max_edits: int | None = None,
        device: torch.device | None = None,
        min_overlap: int | None = None,
    ) -> None:
        super().__init__()
        if max_edits is not None and max_edits < 1:
            raise ValueError(f"max_edits must be at least 1, got {max_edits}")
        self.width, self.k, self.max_edits = width, k, max_edits
        self._least = k if min_overlap is None else _bits(min_overlap)
        capacity = max_edits or _FIRST_CAPACITY
        self.register_buffer("masks", huge_pages.zeros((capacity, words(width)), torch.int32, device))
        self.register_buffer("page", torch.zeros((capacity,), dtype=torch.int32, device=device))
        self.register_buffer("min_overlap", torch.full((capacity,), self._least, dtype=torch.int32, device=device))
        self.register_buffer("target_tokens", torch.zeros((capacity, 2), dtype=torch.int32, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32, device=device))
        self.register_buffer("bank", None)
        self.register_buffer("namesake", None)
        self.bank_numbers: dict[str, int] = {}
        """What names stand for in `bank`."""
        self._dead = torch.zeros(capacity, dtype=torch.bool)  # on the host, at least as long as there are rows
        self._successions: list[tuple[int, torch.Tensor]] = []  # see `succeed`: the stamp from then on, and `same`
        self.stamp = 0
        """Another number whenever rows of edits that there are have changed: deleted, another mask, another page."""
        self._rows = 0  # the host's copy of count
        self.rests = False
        """Whether any edit rests, once its target has been said."""
        self.part: Part | None = None
        """What this process has of the memory that `rows` are of; None: all."""

    def __len__(self) -> int:
        """Rows in use, those of deleted edits included."""
        return self._rows

    @property
    def live(self) -> list[int]:
        """Ids of the edits that can match."""
        living: list[int] = self.alive.nonzero().flatten().tolist()
        return living

    @property
    def alive(self) -> torch.Tensor:
        """Which rows in use are those of edits that can match, bool [rows], on the host."""
        return ~self._dead[: self._rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(one.nbytes for name, one in self.named_buffers() if name != "count")

    def set_min_overlap(self, bits: int, edit_id: int | None = None) -> None:
        """The bits, at least 1, that a match needs: of one edit, or, without an id, of all rows and of those to come.

        In place, so a captured CUDA graph sees it. ValueError below 1, UnknownEditError where the edit is not live.
        """
        bits = _bits(bits)
        if edit_id is None:
            self._least = bits
            self.min_overlap.fill_(bits)
        else:
            self.require(edit_id)
            self.min_overlap[edit_id] = bits

    @property
    def columns(self) -> torch.Tensor:
        """The rows of memory of all edits, int32 [N, k], made of their masks at each call; see `rows`."""
        return self.rows(torch.arange(self._rows, dtype=torch.int32, device=self.masks.device))

    def rows(self, route: torch.Tensor) -> torch.Tensor:
        """The rows of memory that sequences with `route` int32 [B] read: int32 [B, k], ascending, column + D * page.

        Of a route -1 they are any edit's; of a deleted edit, they are below D * page. See `Part.rows` where there is a
        part.
        """
        return self.reads(route)[0]

    def reads(self, route: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `rows`, and per sequence the first that follows the same edit, int32 [B]; see `ops.route_rows`."""
        route = route.to(self.masks.device)
        rows, first = ops.route_rows(self.masks, self.page, route, self.k, self.width)
        if self.part is not None:
            page = self.page.index_select(0, route.clamp(min=0))[:, None]
            rows = self.part.rows(rows, page)
        return rows, first

    def on_page(self, page: int) -> list[int]:
        """Ids of the live edits that live on a page."""
        there: list[int] = ((self.page[: self._rows] == page).cpu() & self.alive).nonzero().flatten().tolist()
        return there

    def written(self, page: int) -> int:
        """How many edits have been written to a page since it was opened, deleted ones included."""
        return int((self.page[: self._rows] == page).sum())

    def leave(self, page: int) -> None:
        """Notes that nothing is left on a page of what deleted edits wrote there."""
        rows = self.page[: self._rows]
        rows[rows == page] = -1

    def append(self, mask: torch.Tensor, page: int = 0) -> int:
        """Adds one edit: mask int32 [W], on a page. Returns its id. StoreFullError past `max_edits`."""
        return self.extend(mask[None], page=page)[0]

    def extend(
        self, masks: torch.Tensor, min_overlap: torch.Tensor | None = None, page: torch.Tensor | int = 0
    ) -> range:
        """Adds many edits: masks int32 [n, W], pages int32 [n] or one for all. Their ids; all are added, or none.

        Their thresholds are `min_overlap` int32 [n]; where it is None, that of the last `set_min_overlap` for all rows.
        StoreFullError past `max_edits`.
        """
        tensor("masks", masks, torch.int32, "n W", W=self.masks.shape[1])
        if min_overlap is not None:
            tensor("min_overlap", min_overlap, torch.int32, "n", n=len(masks))
        if isinstance(page, torch.Tensor):
            tensor("page", page, torch.int32, "n", n=len(masks))
        first, last = self._rows, self._rows + len(masks)
        if self.max_edits is not None and last > self.max_edits:
            raise StoreFullError(
                f"the store holds {first} of max_edits = {self.max_edits}, {len(masks)} more do not fit"
            )
        if last > len(self.masks):
            self._grow(max(last, 2 * len(self.masks)))
        if last > len(self._dead):
            self._dead = torch.cat([self._dead, torch.zeros(max(last, len(self._dead)), dtype=torch.bool)])
        if masks is not self.masks:
            self.masks[first:last] = masks
        self.page[first:last] = page
        self.min_overlap[first:last] = self._least if min_overlap is None else min_overlap
        self.target_tokens[first:last] = 0
        if self.bank is not None and self.namesake is not None:
            self.bank[first:last] = 0
            self.namesake[first:last] = torch.arange(first, last)
        self.count.fill_(last)
        self._rows = last
        return range(first, last)

    def replace(self, edit_id: int, mask: torch.Tensor, page: int | None = None) -> None:
        """Gives a live edit another mask int32 [W] and, if given, another page; its threshold stays."""
        self.require(edit_id)
        tensor("mask", mask, torch.int32, "W", W=self.masks.shape[1])
        self.masks[edit_id] = mask
        if page is not None:
            self.page[edit_id] = page
        self.changed()

    def move(self, page: int, other: int) -> None:
        """The edits of a page live on another from now on. The buffer is a new one: another view may hold this."""
        self.page = torch.where(self.page == page, other, self.page)
        self.changed()

    def changed(self) -> None:
        """Gives the store a stamp that none has."""
        self.stamp = next(_stamps)

    def succeed(self, before: "MaskStore", same: torch.Tensor) -> None:
        """Takes the place of another store, of which `same` bool [its rows] says which ids are the same edit's here.

        It has as much room at least, so that ids of that store lead to no row that there is not.
        """
        if len(self.masks) < len(before.masks):
            self._grow(len(before.masks))
        self.changed()
        found = [*before._successions, (self.stamp, same.to(self.masks.device))]
        while len(found) > _MOST_SUCCESSIONS:
            (_, first), (stamp, second), *rest = found
            least, both = min(len(first), len(second)), second.clone()
            both[:least] &= first[:least]
            found = [(stamp, both), *rest]
        self._successions = found

    def still(self, route: torch.Tensor, stamp: int) -> torch.Tensor:
        """Which edits that sequences have followed since the store had `stamp` they may follow on, bool [B].

        Not those that were deleted, nor ids of a store that this one has succeeded, where they are another edit's here.
        """
        edit = route.clamp(min=0).long()
        live = self.masks[edit].any(dim=1)
        for since, same in self._successions:
            if stamp < since:
                there = edit < len(same)
                live &= there & same[torch.where(there, edit, 0)] if len(same) else there
        return live

    def rest_after(self, edit_id: int, tokens: tuple[int, int]) -> None:
        """How many tokens the memory helps a live edit to say, plainly and in a chat; 0: all that are said."""
        self.require(edit_id)
        self.target_tokens[edit_id] = torch.tensor(tokens, dtype=torch.int32)
        self.rests = self.rests or any(tokens)

    def help(self, route: torch.Tensor, chat: torch.Tensor | None = None) -> torch.Tensor | None:
        """For how many further tokens the memory helps sequences that follow `route` int32 [B], behind their prompts.

        The last token of a target is said with its help, and nothing that comes after it.

        Args:
            route (Tensor): int32 [B], edits or -1.
            chat (Tensor, optional): bool [B], prompts in a chat template. Default: none is.

        Returns:
            int32 [B], any number where the route is -1; None where no edit of the store rests.
        """
        if not self.rests:
            return None
        route = route.to(self.target_tokens.device)
        tokens = self.target_tokens.index_select(0, route.clamp(min=0))
        own = tokens[:, 0] if chat is None else torch.where(chat.to(tokens.device), tokens[:, 1], tokens[:, 0])
        return (own - 1).remainder(_MOST_TOKENS)  # 0 less one: as many as there may be

    def restore(
        self, masks: torch.Tensor, min_overlap: torch.Tensor | None = None, page: torch.Tensor | int = 0
    ) -> None:
        """Fills an empty store (else ValueError) with saved rows, as `extend` does; a mask of zeros is a deleted edit.

        Where they are more than it has room for, `masks` is taken over as it lies, as on pages of a file; not copied,
        also when more are added later; see `growing.adopted`.
        """
        if self._rows:
            raise ValueError(f"only an empty store can be restored, this one has {self._rows} rows")
        if self.max_edits is None and len(masks) > len(self.masks):
            tensor("masks", masks, torch.int32, "n W", W=self.masks.shape[1])
            self.masks = growing.adopted(masks.to(self.masks.device).contiguous())
            self._grow(len(masks), ("page", "target_tokens"))
            self.extend(self.masks, min_overlap, page)
        else:
            self.extend(masks, min_overlap, page)
        self._note_deleted()

    def delete(self, edit_id: int) -> None:
        """The edit matches nothing from now on. UnknownEditError where it is not live."""
        self.require(edit_id)
        self.masks[edit_id] = 0
        if self.bank is not None:
            self.bank[edit_id] = ~self.bank[edit_id]
        self._dead[edit_id] = True
        self.changed()

    def begin_banks(self) -> None:
        """Makes `bank` and `namesake`: every edit is in none, and has a prompt of its own."""
        rows = torch.arange(len(self.masks), dtype=torch.int32, device=self.masks.device)
        self.bank, self.namesake = torch.zeros_like(rows), rows
        self.bank[: self._rows][~self.alive.to(rows.device)] = -1

    def truncate(self, rows: int) -> None:
        """Forgets the edits after the first `rows`: undoes an `extend` that could not be finished."""
        self.masks[rows:] = 0
        self.count.fill_(rows)
        self._rows = rows
        self._dead[rows:] = False

    def undo_from_here(self, replaced: Collection[int] = ()) -> Callable[[], None]:
        """What makes it as it is now, to the bit, after edits were added and `replaced` ones were replaced."""
        tables, given = dict(self._buffers), torch.tensor([*replaced], dtype=torch.int64, device=self.masks.device)
        masks, rows, banks = self.masks[given], self._rows, dict(self.bank_numbers)
        kept = {name: one.clone() for name, one in tables.items() if one is not None and name != "masks"}
        stamp, rests = self.stamp, self.rests

        def undo() -> None:
            self._buffers.update(tables)
            for name, values in kept.items():
                getattr(self, name).copy_(values)
            self.masks[given] = masks
            self.masks[rows:] = 0
            self._rows, self.stamp, self.rests, self.bank_numbers = rows, stamp, rests, banks

        return undo

    def holds(self, edit_id: int) -> bool:
        """Whether that is a live edit's id."""
        whole = isinstance(edit_id, int) and not isinstance(edit_id, bool)
        return whole and 0 <= edit_id < self._rows and not self._dead[edit_id]

    def require(self, edit_id: int) -> None:
        """Raises UnknownEditError where `edit_id` is no live edit."""
        if not self.holds(edit_id):
            raise UnknownEditError(
                f"no live edit has the id {edit_id!r}; the store has {int(self.alive.sum())} live edits"
            )

    def match(self, query: torch.Tensor, among: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Query masks int32 [B, W] -> best edit int32 [B] or -1, overlap int32 [B]; `among` as in `best_row`."""
        return best_row(query, self.masks, self.count, self.min_overlap, among)

    def overlaps(self, query: torch.Tensor) -> torch.Tensor:
        """Query masks int32 [B, W] -> the bits that each shares with each live edit's mask, int32 [B, live]."""
        live = self.masks[: self._rows][self.alive.to(self.masks.device)]
        return shared_bits(query, live)

    def best_overlap(self, query: torch.Tensor) -> torch.Tensor:
        """Query masks int32 [B, W] -> the most bits that each shares with an edit's mask, int32 [B]; 0: nothing."""
        return best_row(query, self.masks, self.count, 1)[1]

    def _grow(self, capacity: int, names: Sequence[str] = ("masks", "page", "target_tokens")) -> None:
        every = (*names, *(() if self.bank is None else ("bank", "namesake")))
        larger = {name: growing.grown(getattr(self, name), self._rows, capacity) for name in every}
        larger["min_overlap"] = growing.grown(self.min_overlap, self._rows, capacity, self._least)
        self._buffers.update(larger)  # all of them, or none

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        if prefix + "masks" in state_dict and len(state_dict[prefix + "masks"]) != len(self.masks):
            self._rows = 0  # its own edits give way to those of the state
            self._grow(len(state_dict[prefix + "masks"]))
        if prefix + "masks" in state_dict:  # a state from before rows had thresholds takes the one that is set here
            state_dict.setdefault(prefix + "min_overlap", torch.full_like(self.min_overlap, self._least))
            state_dict.setdefault(prefix + "target_tokens", torch.zeros_like(self.target_tokens))
            state_dict.setdefault(prefix + "page", torch.zeros_like(self.page))  # or from before there were pages
            state_dict.pop(prefix + "columns", None)
            if prefix + "bank" not in state_dict:
                self.bank = self.namesake = None
            elif self.bank is None:
                self.begin_banks()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._rows, self.rests = int(self.count), bool(self.target_tokens.any())
        self.changed()
        self._note_deleted()

    def _note_deleted(self) -> None:
        self._dead = torch.zeros(max(len(self.masks), 1), dtype=torch.bool)
        self._dead[: self._rows] = ~self.masks[: self._rows].any(dim=1).cpu()

    def extra_repr(self) -> str:
        limit = f", max_edits={self.max_edits}" if self.max_edits else ""
        return f"edits={int(self.alive.sum())}, width={self.width}, k={self.k}, capacity={len(self.masks)}{limit}"
