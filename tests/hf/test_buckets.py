"""Rows of about one length are put together at the least cost, and nothing is lost or doubled by it."""

import itertools

import pytest
import torch

from memoir_fast.hf.buckets import Bucket, buckets, cheapest, places


def _mask(lengths, width=None):
    return (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _cost(lengths, ends, call):
    return sum((end - start) * lengths[start] + call for start, end in itertools.pairwise([0, *ends]))


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("call", [0, 3, 25, 1e9])
def test_no_split_is_cheaper(count, call):
    lengths = sorted(torch.randint(1, 40, (count,)).tolist(), reverse=True)
    ends = cheapest(lengths, call)
    every = [[*inner, count] for size in range(count) for inner in itertools.combinations(range(1, count), size)]
    assert ends in every
    assert _cost(lengths, ends, call) == min(_cost(lengths, some, call) for some in every)


@pytest.mark.parametrize("lengths", [(7,), (9, 9, 9), (12, 41, 12, 9, 22, 8), (64, 1, 63, 2, 65), (3,) * 127 + (900,)])
def test_each_row_is_in_one_bucket_that_holds_its_tokens(lengths):
    mask = _mask(lengths)
    found = buckets(mask, hidden=576)
    assert sorted(torch.cat([one.rows for one in found]).tolist()) == list(range(len(lengths)))
    for one in found:
        assert one.rows.tolist() == sorted(one.rows.tolist())
        assert one.width >= max(lengths[row] for row in one.rows)
    assert sum(int(one.of(mask).sum()) for one in found) == sum(lengths)


def test_a_small_model_and_another_device_take_all_rows_at_once():
    mask = _mask((40, 8, 8, 8))
    assert len(buckets(mask, hidden=576)) == 2
    for some, hidden in ((mask, 64), (mask.to("meta"), 576), (_mask((40, 40)), 4096)):
        (one,) = buckets(some, hidden)
        assert (len(one.rows), one.width) == tuple(some.shape)


def test_a_batch_wider_than_its_rows_is_taken_as_it_is():
    (one,) = buckets(_mask((5, 4), width=16), hidden=576)
    assert one.width == 16


@pytest.mark.parametrize("marked", [True, False])
def test_positions_come_back_in_their_order(marked):
    values = torch.randn(5, 20)
    together = [Bucket(torch.tensor([1, 4]), 20), Bucket(torch.tensor([0, 2, 3]), 9)]
    asked = torch.rand(5, 20) < 0.3
    asked[[0, 2, 3], 9:] = False
    asked[[1, 4]] = asked[[1, 4]] & torch.tensor([[True], [False]])  # a row without any
    own, order = places(together, asked if marked else asked.nonzero(as_tuple=True))
    found = torch.cat([bucket.of(values)[some] for bucket, some in zip(together, own, strict=True)])
    assert torch.equal(found[order], values[asked])


def test_one_bucket_leaves_positions_alone():
    asked = torch.rand(3, 4) < 0.5
    own, order = places([Bucket(torch.arange(3), 4)], asked)
    assert own == [asked] and order is None
