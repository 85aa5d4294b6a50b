"""mask_overlap and mask_match of the extension on the CPU, bit for bit against the reference."""

import pytest
import torch

from memoir_fast.reference.mask_match import mask_match
from memoir_fast.reference.mask_overlap import mask_overlap

KINDS = ("random", "zeros", "ones", "single", "tied", "duplicated")
WIDTHS = (1, 127, 129, 1536, 11008, 14336, 16384, 18944)


def count_of(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int32)


def least_of(bits: int, rows: int) -> torch.Tensor:
    return torch.full((rows,), bits, dtype=torch.int32)


def assert_match(raw, query, store, count, min_overlap) -> None:
    if isinstance(min_overlap, int):
        min_overlap = least_of(min_overlap, len(store))
    edit, overlap = raw.mask_match(query, store, count_of(count), min_overlap)
    expected_edit, expected_overlap = mask_match(query, store, count_of(count), min_overlap)
    assert edit.dtype == overlap.dtype == torch.int32
    assert torch.equal(edit, expected_edit)
    assert torch.equal(overlap, expected_overlap)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("poison")
def test_widths(raw, masks, cpu_path, width):
    query, store = masks("random", 5, width), masks("random", 37, width)
    assert torch.equal(raw.mask_overlap(query, store), mask_overlap(query, store))
    assert_match(raw, query, store, 37, max(1, width // 12))
    assert_match(raw, query[:1], store, 37, torch.arange(37, dtype=torch.int32) * (width // 60))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", KINDS)
def test_kinds(raw, masks, cpu_path, kind, stored):
    query, store = masks(kind, 3, 300), masks(stored, 50, 300)
    assert torch.equal(raw.mask_overlap(query, store), mask_overlap(query, store))
    assert_match(raw, query, store, 50, 1)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 63, 64, 65, 300])
def test_sizes(raw, masks, cpu_path, threads, rows, batch):
    query, store = masks("random", batch, 520), masks("duplicated", rows, 520)
    assert torch.equal(raw.mask_overlap(query, store), mask_overlap(query, store))
    assert_match(raw, query, store, rows, 40)
    assert_match(raw, query, store, rows, torch.randint(-5, 200, (2 * rows,), dtype=torch.int32)[::2])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 99, 100])
def test_count_below_capacity(raw, masks, cpu_path, count):
    store = masks("random", 100, 640)
    assert_match(raw, store[99:], store, count, 50)  # the best row, the last, counts only where count is 100
    assert_match(raw, store[:3], store, count, 641)


WAYS = (
    *(f"avx512 {how}" for how in ("in 4 streams", "in 2 streams", "prefetched 8 KiB ahead", "row by row")),
    *(f"avx2 {how}" for how in ("in 4 streams", "prefetched 8 KiB ahead")),
    *(f"portable {how}" for how in ("row by row", "prefetched 4 KiB ahead", "in 4 streams")),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [1, 129, 1536, 14336])
def test_every_way_of_one_query(raw, extension, masks, way, width):
    """Row counts around the number of streams; the best row in each stream, and tied across them."""
    if not extension.cpu_features()[way.split()[0]]:
        pytest.skip(f"this CPU lacks the instructions of {way}")
    extension.force_cpu_search(way)
    try:
        for rows in (0, 1, 2, 3, 4, 5, 7, 9, 63):
            query, store = masks("random", 1, width), masks("tied", rows, width)
            least = torch.randint(-5, width // 3 + 2, (2 * rows,), dtype=torch.int32)[::2]
            assert_match(raw, query, store, rows, least)
            for row in range(rows):
                store[row] = query[0]
                assert_match(raw, query, store[row:], rows - row, 1)
    finally:
        extension.force_cpu_search("")
    with pytest.raises(ValueError, match="no search that is called sideways"):
        extension.force_cpu_search("sideways")


@pytest.mark.parametrize("min_overlap", [1, 3, 4, (1 << 31) - 1])
def test_threshold_is_inclusive(raw, masks, cpu_path, min_overlap):
    query = torch.tensor([[7, 0, 0, 0]], dtype=torch.int32)
    edit, overlap = raw.mask_match(query, query.repeat(4, 1), count_of(4), least_of(min_overlap, 4))
    assert (edit.item(), overlap.item()) == (0 if min_overlap <= 3 else -1, 3)


@pytest.mark.parametrize("width", [1536, 14336])
def test_large_store(raw, masks, threads, width):
    rows = 100_000
    store = torch.randint(-(1 << 31), (1 << 31) - 1, (rows, width // 32), dtype=torch.int32)
    query = torch.stack([store[77_777], store[99_999]])
    store[88_888] = store[77_777]
    edit, overlap = raw.mask_match(query, store, count_of(rows), least_of(1, rows))
    every = raw.mask_overlap(query, store)
    assert edit.tolist() == [77_777, 99_999]
    assert torch.equal(overlap, every.max(dim=1).values)
    some = torch.randint(rows, (64,))
    assert torch.equal(every[:, some], mask_overlap(query, store[some]))


def test_views(raw, masks, cpu_path):
    """Rows with gaps, transposed words, expanded rows, and views that start off a 16-byte boundary."""
    wide = masks("random", 40, 128 * 9)
    query, store = wide[3:8, 5:33], wide[::3, 5:33]
    assert query.data_ptr() % 16
    assert_match(raw, query, store, len(store), 1)
    across = wide.t().contiguous().t()[:, :32]
    assert_match(raw, across[:4], across, 40, 1)
    assert_match(raw, query[:1].expand(6, -1), store[:1].expand(20, -1), 20, 1)
    assert torch.equal(raw.mask_overlap(query, store), mask_overlap(query, store))


def test_paths_and_threads_agree(raw, extension, masks):
    query, store = masks("tied", 40, 3000), masks("tied", 999, 3000)
    results = []
    for path, supported in extension.cpu_features().items():
        for threads in (1, 2) if supported else ():
            extension.set_cpu_path(path)
            torch.set_num_threads(threads)
            match = raw.mask_match(query, store, count_of(999), least_of(9, 999))
            results.append((*match, raw.mask_overlap(query, store)))
    extension.set_cpu_path("auto")
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
