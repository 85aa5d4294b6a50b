"""The ceiling that shares are taken of: what its kernels move, which of them counts, and when it is not believed."""

import pytest
import torch

SIZE = 1 << 16


@pytest.fixture
def bandwidth(bench):
    return bench("bandwidth")


def test_kernels_move_what_they_say(bandwidth):
    source, target = torch.ones(SIZE), torch.zeros(SIZE)
    for kind, least in (("read", 3), ("copy", 2)):
        found = bandwidth.movers(kind, 40_000, source, target)
        assert len(found) >= least and all(name.startswith(bandwidth.CEILING) for name in found)
        for name, mover in found.items():
            assert 0.95 * 40_000 <= mover.bytes <= 40_000, name
            target.zero_()
            result = mover.run(0)
            if "copy" in name:
                assert 8 * int(target.sum()) == mover.bytes, "a copy reads as much as it writes"
            elif name.endswith("torch.dot"):
                assert 8 * int(result) == mover.bytes
            elif name.endswith("torch.sum"):
                assert result == source[:2].view(torch.int64)[0] * (mover.bytes // 8)


def test_own_search_is_among_the_readers(bandwidth):
    from memoir_fast import backends

    reason = backends.load("mask_match", "cpu")
    if isinstance(reason, str):
        pytest.skip(f"the extension is not built: {reason}")
    found = bandwidth.movers("read", 40_000, torch.ones(SIZE), torch.ones(SIZE))
    edit, overlap = found[f"{bandwidth.CEILING}mask_match"].run(0)
    assert edit.item() == 0 and overlap.item() == 448 * 7  # 1.0 is 0x3F800000: seven bits


@pytest.mark.parametrize("size", [0, 1, 4 * SIZE, 1 << 40])
def test_any_size_is_served_within_the_buffer(bandwidth, size):
    for mover in bandwidth.movers("read", size, torch.ones(SIZE), torch.ones(SIZE)).values():
        mover.run(0)
        assert 0 < mover.bytes <= 4 * SIZE


def test_best_block_of_the_best_kernel_counts(bandwidth):
    moved = {f"{bandwidth.CEILING}{name}": bandwidth.Mover(lambda _: None, 100) for name in ("a", "b", "never ran")}
    samples = {f"{bandwidth.CEILING}a": [5.0, 2.0, 9.0], f"{bandwidth.CEILING}b": [3.0, 3.0], "own": [0.1]}
    assert bandwidth.best(samples, moved) == bandwidth.Bandwidth("a", 100, 50.0, 3)
    assert bandwidth.best({"own": [1.0]}, moved) is None


def test_share_above_the_trusted_is_none(bandwidth):
    ceiling = bandwidth.Bandwidth("a", 100, 50.0, 3)
    assert bandwidth.share(52.0, ceiling) == pytest.approx(1.04)
    assert bandwidth.share(53.0, ceiling) is None
    assert bandwidth.share(1.0, None) is None


def test_row_under_a_ceiling_too_low_has_no_share(bench, bandwidth, doubling, timer, monkeypatch):
    slow = {f"{bandwidth.CEILING}slow": bandwidth.Mover(lambda _: torch.ones(100_000).sum(), 8)}
    monkeypatch.setattr(timer, "movers", lambda kind, size: slow)
    settings = bench("cases").Settings(compile=False, seconds=0.005)
    (row,) = bench("cases").rows_of([doubling()], settings, timer)
    assert row["seconds"]["cold"]["p50"] > 0 and row["peers"]["right"]["ratio"] > 0
    assert not row["ceiling_trusted"]
    assert row["share_of_ceiling"] is None and row["floor_seconds"] is None and row["times_floor"] is None
    (line,) = bench("summary").lines(row)
    assert "%" not in line
    assert bench("summary").share_of(row, "ceiling not trusted") == "ceiling not trusted"
