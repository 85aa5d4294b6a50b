"""What holds of rows that are split over processes: the answers are those of one process with all of them."""

import pytest
import torch
import torch.distributed as dist

from memoir_fast import ops
from memoir_fast.modules.sharded_rows import ShardedRows

WIDTH = 300


def drawn(rows, draw, kinds=None):
    """Random rows int32 [rows, W], of so many kinds, and thresholds that some overlaps reach and some do not."""
    words = draw.new(WIDTH, kinds or max(rows, 1))
    return words[torch.arange(rows) % len(words)], torch.randint(1, 12, (rows,), generator=draw.generator).int()


class Draw:
    """The same numbers on every process."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def new(self, width, rows):
        bits = (torch.rand(rows, 4 * -(-width // 128) * 32, generator=self.generator) < 0.08).long()
        bits[:, width:] = 0
        packed = (bits.view(rows, -1, 32) << torch.arange(32)).sum(dim=-1)
        return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def one_process(query, rows, least):
    return ops.mask_match(query, rows, torch.tensor(len(rows)).int(), least)


def check_random_rows_ties_and_empty_shards(folder):
    for seed, count in enumerate((0, 1, 2, 3, 5, 64, 100, 257, 600)):
        for kinds in (None, 2):  # two kinds of rows: every best row has equals on other processes
            draw = Draw(seed)
            rows, least = drawn(count, draw, kinds)
            store = ShardedRows(WIDTH)
            cut = count // 3
            assert store.extend(rows[:cut], least[:cut]) == range(cut)
            assert store.extend(rows[cut:], least[cut:]) == range(cut, count) and len(store) == count
            query = torch.cat([draw.new(WIDTH, 20), rows[:20], torch.zeros_like(draw.new(WIDTH, 1))])
            expected = one_process(query, rows, least) if count else (torch.full((len(query),), -1), query[:, 0] * 0)
            for found, wanted in zip(store.match(query), expected, strict=True):
                assert found.dtype == torch.int32 and torch.equal(found, wanted.int()), (seed, count, kinds)


def check_changed_thresholds_and_deleted_rows(folder):
    draw = Draw(7)
    rows, least = drawn(90, draw, 30)
    store = ShardedRows(WIDTH)
    store.extend(rows, least)
    query = rows[:30]
    matched = 0
    for _ in range(40):
        number, bits = (int(torch.randint(1, most, (), generator=draw.generator)) for most in (90, 40))
        if bits % 3:
            least[number] = bits
            store.set_min_overlap(bits, number)
        else:
            rows[number] = 0
            store.delete(number)
        found, expected = store.match(query), one_process(query, rows, least)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        matched += int((found[0] >= 0).sum())
    assert 0 < matched < 40 * 30
    with pytest.raises(IndexError, match=r"rows 0 .. 89, got 90"):
        store.delete(90)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        store.set_min_overlap(0, 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        store.extend(rows[:1], least[:1] * 0)
    assert len(store) == 90


def check_one_collective_call_per_search(folder):
    calls, before = [], dist.all_reduce
    store = ShardedRows(WIDTH)
    store.extend(*drawn(10, Draw(3)))
    assert len(store.rows[: int(store.count)]) == len(range(dist.get_rank(), 10, dist.get_world_size()))

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.nbytes)
        return before(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        store.match(Draw(4).new(WIDTH, 5))
    finally:
        dist.all_reduce = before
    assert calls == [5 * 8]
