"""On which page of the residual memory a new edit lives."""

import logging

import pytest
import torch
from torch.overrides import TorchFunctionMode

from memoir_fast.core.pages import choose, page_edits
from memoir_fast.modules import MemoirLinear


def _layer(**options):
    return MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9, **options)


def _written(layer, page, count=1):
    masks, _ = layer.hash(torch.randn(count, 5, 64))
    return list(layer.store.extend(masks, page=page))


@pytest.mark.parametrize(
    ("width", "k", "expected"), [(1536, 440, 96), (14336, 4096, 896), (48, 16, 32), (14336, 2048, 3584)]
)
def test_a_page_takes_fewer_edits_the_more_of_it_each_owns(width, k, expected):
    assert page_edits(width, k) == pytest.approx(expected, rel=0.01)


def test_pages_are_filled_one_after_another():
    layer, emptied = _layer(), []
    for number in range(7):
        page, room = choose(layer, 3, emptied.append)
        assert (page, room) == (number // 3, 3 - number % 3)
        _written(layer, page)
    assert emptied == [1, 2], "a page that is opened has nothing counted"


def test_the_page_of_the_newest_edit_comes_first_then_any_with_room():
    layer = _layer()
    layer.memory.open(), layer.memory.open()
    _written(layer, 1, 2)
    _written(layer, 2, 1)
    assert choose(layer, 3, print) == (2, 2)
    assert choose(layer, 1, print) == (0, 1)
    _written(layer, 0, 3)
    assert choose(layer, 3, print) == (1, 1) or choose(layer, 3, print) == (2, 2)
    layer.memory.close(1)
    assert choose(layer, 3, print) == (2, 2), "a page that was given back is not open"


def test_a_page_whose_edits_are_all_deleted_is_emptied_and_used_again():
    layer, emptied = _layer(), []
    ids = _written(layer, 0, 2)
    layer.memory.page(0).fill_(1)
    layer.store.delete(ids[0])
    assert choose(layer, 2, emptied.append) == (1, 2), "one of its edits is live"
    _written(layer, 1, 2)
    layer.store.delete(ids[1])
    assert choose(layer, 2, emptied.append) == (0, 2) and emptied == [1, 0]
    assert not layer.memory.page(0).any() and layer.store.written(0) == 0 and layer.written == 1


def test_pages_are_crowded_where_there_may_be_no_more(caplog):
    layer = _layer(max_pages=2)
    _written(layer, 0, 2)
    assert choose(layer, 2, print) == (1, 2)
    _written(layer, 1, 2)
    with caplog.at_level(logging.WARNING, logger="memoir_fast"):
        assert choose(layer, 2, print) == (0, 1)
        _written(layer, 0)
        assert choose(layer, 2, print) == (1, 1)
    assert "all of max_pages = 2 pages hold page_edits = 2 edits" in caplog.text


class _Run(TorchFunctionMode):
    """Counts operations."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("most", [1, 3], ids=["a new page", "one with room"])
def test_pages_are_not_gone_through_one_by_one(most):
    """Of 1,000 pages with 100 edits each, that would take as long as an edit."""
    counts = []
    for pages in (2, 40):
        layer = _layer()
        for page in range(pages):
            _written(layer, layer.memory.open() if page else 0)
        with _Run() as run:
            assert choose(layer, most, lambda _: None)[1] == most - (most > 1)
        counts.append(run.count)
    assert counts[0] == counts[1]
