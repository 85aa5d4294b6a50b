"""Banks: named sets of a store's edits, and the search among those that a prompt may follow.

Edits without a bank are everybody's. Those of a named bank answer prompts that ask for it, and no others: they are left
out of the search itself, so that the best row of a foreign bank hides no row of a prompt's own.
"""

from collections.abc import Mapping, Sequence
from itertools import count

import torch

from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.mask_store import MaskStore

Asked = frozenset[str]
"""The named banks that a prompt asks for; it sees edits without a bank besides."""


def put(store: MaskStore, edit_id: int, bank: str, twin: int | None = None) -> None:
    """Notes in which bank a live edit is, "" for none, and with which other edit it shares its prompt."""
    if store.bank is None or store.namesake is None:
        if not bank:
            return
        store.begin_banks()
        assert store.bank is not None and store.namesake is not None
    store.bank[edit_id] = number(store, bank)
    store.namesake[edit_id] = edit_id if twin is None else store.namesake[twin].clone()


def restore(store: MaskStore, banks: Mapping[int, str], namesakes: Mapping[int, int]) -> None:
    """As `put`, of all edits of a store that was filled: their banks, and an edit of the same prompt, by their ids."""
    if not any(banks.values()):
        return
    store.begin_banks()
    assert store.bank is not None and store.namesake is not None
    device, ids = store.bank.device, torch.tensor(list(banks), device=store.bank.device)
    new = dict.fromkeys(bank for bank in banks.values() if bank and bank not in store.bank_numbers)
    store.bank_numbers.update(zip(new, count(_next(store))))
    numbers = [number(store, bank) for bank in banks.values()]
    store.bank[ids] = torch.tensor(numbers, dtype=torch.int32, device=device)
    store.namesake[ids] = torch.tensor([namesakes[one] for one in banks], dtype=torch.int32, device=device)


def number(store: MaskStore, bank: str) -> int:
    """A bank's number in `MaskStore.bank`; one that has none gets the next. 0 is that of edits without a bank."""
    if not bank:
        return 0
    known = store.bank_numbers
    if bank not in known:
        known[bank] = _next(store)
    return known[bank]


def _next(store: MaskStore) -> int:
    """Numbers are given in ascending order: of those that are known, the last is the greatest."""
    stored = 0 if store.bank is None else int(store.bank.abs().max())
    return 1 + max(stored, next(reversed(store.bank_numbers.values()), 0))


def seen(store: MaskStore, asked: frozenset[int]) -> torch.Tensor:
    """Which edits a prompt may follow that asks for banks of these numbers, bool [C]; the store must have banks.

    An edit without a bank gives way to one of the same prompt in a bank that is asked for.
    """
    assert store.bank is not None and store.namesake is not None
    shared = store.bank == 0
    if not asked:
        return shared
    own = torch.stack([store.bank == one for one in sorted(asked)]).any(dim=0)
    used = torch.arange(len(own), device=own.device) < store.count
    rank = torch.where(used, 2 * own.int() + shared.int(), 0)
    prompt = store.namesake.long()
    best = torch.zeros_like(rank).scatter_reduce(0, prompt, rank, "amax")
    return (rank > 0) & (rank == best[prompt])


def bound(store: MaskStore, edit_id: int) -> torch.Tensor | None:
    """Which edits nobody sees who does not see this one too, bool [C], but those of its own prompt; None: all.

    Their thresholds may be raised for it: of others, that would tell who asks for them of this one's bank.
    """
    if store.bank is None or store.namesake is None:
        return None
    own = store.bank[edit_id]
    return ((store.bank == own) | (own == 0)) & (store.namesake != store.namesake[edit_id])


def search(
    store: MaskStore,
    codes: CodeStore | None,
    query: torch.Tensor,
    asked: Sequence[Asked] | None = None,
    words: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edit that each of B prompts follows, of those that it may.

    Rows of banks that a prompt does not ask for take no part in its search. Each set of banks among the prompts is one
    scan for matches and one for the overlaps of what does not match; in a store without banks, all are one scan.

    Args:
        store (MaskStore): the edits.
        codes (CodeStore, optional): their routing codes, where these are searched and not the masks.
        query (Tensor): masks int32 [B, W], or codes int32 [B, Q, W].
        asked (sequence of sets of str, optional): the named banks that each prompt asks for, B of them. Default: none.
        words (Tensor, optional): bool [B, 1 + V], the prompts' tokens; see `CodeStore.match`.

    Returns:
        edit int32 [B] or -1, overlap int32 [B].

    Example:
        >>> import torch
        >>> from memoir_fast.modules import MaskStore
        >>> from memoir_fast.modules.banks import put, search
        >>> store, mask = MaskStore(128, k=2), torch.tensor([3, 0, 0, 0]).int()
        >>> put(store, store.append(mask), "acme")
        >>> search(store, None, mask[None])[0].item(), search(store, None, mask[None], [frozenset(["acme"])])[0].item()
        (-1, 0)
    """
    if store.bank is None:
        return _match(store, codes, query, None, words)
    rows: dict[frozenset[int], list[int]] = {}
    for row, names in enumerate(asked if asked is not None else [frozenset[str]()] * len(query)):
        known = frozenset(store.bank_numbers[name] for name in names if name in store.bank_numbers)
        rows.setdefault(known, []).append(row)
    if len(rows) < 2:
        return _match(store, codes, query, seen(store, next(iter(rows), frozenset())), words)
    each, found = query.unbind(), []
    for banks, some in rows.items():  # stacked, not indexed: numbers of rows would have to be sent to a device
        own = None if words is None else torch.stack([words[row] for row in some])
        found.append(_match(store, codes, torch.stack([each[row] for row in some]), seen(store, banks), own))
    places = [row for some in rows.values() for row in some]
    back = sorted(range(len(places)), key=places.__getitem__)
    edit, overlap = (torch.cat(parts).unbind() for parts in zip(*found, strict=True))
    return torch.stack([edit[place] for place in back]), torch.stack([overlap[place] for place in back])


def _match(
    store: MaskStore,
    codes: CodeStore | None,
    query: torch.Tensor,
    among: torch.Tensor | None,
    words: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return store.match(query, among) if codes is None else codes.match(query, among, words)
