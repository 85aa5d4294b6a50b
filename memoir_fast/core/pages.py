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
    every = _on_pages(layer, torch.ones_like(store.page[: len(store)], dtype=torch.bool))
    written = {page: every[page] for page in memory.numbers if page not in without}
    own, newest = _own(layer, bank, written)
    for page in (newest, *written):
        if page in own and written[page] < most:
            return page, most - written[page]
    live = _on_pages(layer, _alive(layer))
    for page in written:
        if not live[page]:
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
    alive, half = _alive(layer), defaultdict[frozenset[int], list[int]](list)
    written, live = _on_pages(layer, torch.ones_like(alive)), _on_pages(layer, alive)
    homes = _homes(layer)
    residue = [page for page in layer.memory.numbers if written[page] > live[page]]
    for page in layer.memory.numbers:
        if live[page] <= most // 2:
            half[frozenset(homes.get(page, ()))].append(page)
    return sorted({*residue}.union(*(some for some in half.values() if len(some) > 1)))


def _own(layer: MemoirLinear, bank: str, written: dict[int, int]) -> tuple[set[int], int]:
    """The pages, of those given, that are a bank's own or nobody's; and that of its newest edit."""
    store = layer.store
    if store.bank is None and not bank:
        return {*written}, int(store.page[len(store) - 1]) if len(store) else -1
    number, alive = banks.number(store, bank), _alive(layer)
    its = torch.zeros_like(alive) if store.bank is None else store.bank[: len(store)] == number
    live, own = _on_pages(layer, alive), _on_pages(layer, its)
    rows = its.nonzero()
    newest = int(store.page[rows[-1]]) if len(rows) else -1
    return {page for page in written if 0 < live[page] == own[page] or not written[page]}, newest


def _alive(layer: MemoirLinear) -> torch.Tensor:
    """Which edits are live, bool [rows], where the store lies."""
    return layer.store.alive.to(layer.store.page.device)


def _on_pages(layer: MemoirLinear, which: torch.Tensor) -> list[int]:
    """How many edits of `which` bool [rows] are on each page."""
    lives = layer.store.page[: len(which)]
    counts: list[int] = lives[which & (lives >= 0)].bincount(minlength=layer.memory.pages).tolist()
    return counts


def _homes(layer: MemoirLinear) -> dict[int, set[int]]:
    """The numbers of the banks whose edits live on each page."""
    store, homes = layer.store, defaultdict[int, set[int]](set)
    live = _alive(layer).nonzero().flatten()
    bank = torch.zeros_like(store.page) if store.bank is None else store.bank
    for page, number in torch.stack([store.page[live], bank[live]]).unique(dim=1).T.tolist():
        homes[page].add(number)
    return homes
