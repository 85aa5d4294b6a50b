"""On which page of the residual memory a new edit lives."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection

import torch

from memoir_fast.errors import StoreFullError
from memoir_fast.modules import MemoirLinear, banks

logger = logging.getLogger("memoir_fast")

_FEWEST = 32
_WIDTH_PER_EDIT = 16  # columns of a page for each of its edits, where as published an edit owns two sevenths of them


def page_edits(width: int, k: int) -> int:
    """How many edits a page of `width` columns takes before the next is opened, where an edit owns `k` of them.

    Two edits share k^2 / D columns by chance, so what an edit has to share with all others of its page grows by
    k^2 / D^2 with each: the number is inverse to that share, squared, and grows with the width.

    Example:
        >>> from memoir_fast.core.pages import page_edits
        >>> page_edits(1536, 440), page_edits(14336, 4096)
        (96, 896)
    """
    published = (4096 / 14336) ** 2
    return max(_FEWEST, round(width / _WIDTH_PER_EDIT * published * width * width / (k * k)))


def choose(
    layer: MemoirLinear, most: int, emptied: Callable[[int], None], without: Collection[int] = (), bank: str = ""
) -> tuple[int, int]:
    """The page for a new edit, and how many edits it still takes, at least 1.

    That of the newest edit, as long as fewer than `most` edits were written to it; then the first other that has room;
    then one whose edits are all deleted, emptied; then a new one. Where there are as many as there may be, the least
    crowded takes further edits, which then fade.

    A bank has pages of its own: what others write or leave changes nothing that its edits read, and one prompt may have
    a target in each bank, though its columns are the same. Only where there may be no more pages do banks share them.

    Args:
        layer (MemoirLinear): its store and memory.
        most (int): edits per page.
        emptied (callable): is told a page that was emptied, or newly opened.
        without (collection of int): pages that take no edit now.
        bank (str): the new edit's. Default: none.

    Raises:
        StoreFullError: there may be no further page, and none takes edits now.
    """
    memory, store = layer.memory, layer.store
    lives = store.page[: len(store)]
    counts = lives[lives >= 0].bincount(minlength=memory.pages).tolist()
    written = {page: counts[page] for page in memory.numbers if page not in without}
    own, newest = _own(layer, bank, written)
    for page in (newest, *own):
        if page in own and written[page] < most:
            return page, most - written[page]
    lived_on = set(lives[store.live].tolist())
    for page in written:
        if page not in lived_on:
            empty(layer, page)
            emptied(page)
            return page, most
    if memory.full and written:
        least = min(written, key=lambda page: written[page])
        if written[least] == most:
            logger.warning(
                "all of max_pages = %d pages hold page_edits = %d edits: further ones crowd them, earlier ones fade",
                len(written),
                most,
            )
        return least, 1
    if memory.full:
        raise StoreFullError(
            f"all of max_pages = {memory.max_pages} pages are left out: they hold this prompt, in other banks"
        )
    with layer.changing():
        page = memory.open()
    emptied(page)
    return page, most


def empty(layer: MemoirLinear, page: int) -> None:
    """Takes what deleted edits left there off a page on which no edit lives."""
    with layer.changing(page=page, rows=True):
        layer.memory.page(page).zero_()
        layer.store.leave(page)


def loose(layer: MemoirLinear, most: int) -> list[int]:
    """The pages that `Memoir.compact` takes apart: with residue of deleted edits, or, if there are several, half empty.

    Args:
        layer (MemoirLinear): its store and memory.
        most (int): edits per page.
    """
    store = layer.store
    live = {page: len(store.on_page(page)) for page in layer.memory.numbers}
    residue = [page for page in live if store.written(page) > live[page]]
    half, homes = defaultdict[frozenset[int], list[int]](list), _homes(layer)
    for page in live:
        if live[page] <= most // 2:
            half[frozenset(homes.get(page, ()))].append(page)
    return sorted({*residue}.union(*(some for some in half.values() if len(some) > 1)))


def _own(layer: MemoirLinear, bank: str, written: dict[int, int]) -> tuple[list[int], int]:
    """The pages, of those given, that are a bank's own or nobody's; and that of its newest edit."""
    store = layer.store
    if store.bank is None and not bank:
        return list(written), int(store.page[len(store) - 1]) if len(store) else -1
    number, homes = banks.number(store, bank), _homes(layer)
    own = [page for page in written if homes.get(page) == {number} or not written[page]]
    rows = [] if store.bank is None else (store.bank[: len(store)] == number).nonzero().flatten().tolist()
    return own, int(store.page[rows[-1]]) if rows else -1


def _homes(layer: MemoirLinear) -> dict[int, set[int]]:
    """The numbers of the banks whose edits live on each page."""
    store, homes = layer.store, defaultdict[int, set[int]](set)
    live = torch.tensor(store.live, dtype=torch.int64, device=store.page.device)
    bank = torch.zeros_like(store.page) if store.bank is None else store.bank
    for page, number in torch.stack([store.page[live], bank[live]]).unique(dim=1).T.tolist():
        homes[page].add(number)
    return homes
