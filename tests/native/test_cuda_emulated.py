"""The CUDA kernels without a GPU: compiled for the CPU, where every CUDA thread is a fiber, against the reference."""

import ctypes

import pytest
import torch

from memoir_fast.reference.mask_match import mask_match
from memoir_fast.reference.mask_overlap import mask_overlap

SMALL, LARGE = -1, -2  # the two matrix tilings; a positive number is the queries of a POPC tile


@pytest.fixture
def run_scan(emulated):
    function = emulated("kernels").run_scan

    def run(kernel, query, store, count=None, min_overlap=1, blocks=2, threads=64):
        queries, rows, words = len(query), len(store), query.shape[1]
        edit = torch.full((queries,), -7, dtype=torch.int32)
        overlap = torch.full((queries, rows) if count is None else (queries,), -7, dtype=torch.int32)
        pointer = None if count is None else ctypes.byref(ctypes.c_int32(count))
        least = thresholds(min_overlap, rows)
        arrays = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (query, store, least, edit, overlap)]
        sizes = ctypes.c_int(queries), ctypes.c_int(rows), ctypes.c_int(words)
        function(
            kernel, blocks, threads, arrays[0], sizes[0], arrays[1], *sizes[1:], pointer, *arrays[2:],
        )  # fmt: skip
        return (edit, overlap) if count is not None else overlap

    return run


def thresholds(bits, rows) -> torch.Tensor:
    return bits if isinstance(bits, torch.Tensor) else torch.full((rows,), bits, dtype=torch.int32)


def assert_same(run_scan, kernel, query, store, count, min_overlap, **grid) -> None:
    assert torch.equal(run_scan(kernel, query, store, **grid), mask_overlap(query, store))
    edit, overlap = run_scan(kernel, query, store, count, min_overlap, **grid)
    clamped = torch.tensor(min(max(count, 0), len(store)))
    expected = mask_match(query, store, clamped, thresholds(min_overlap, len(store)))
    assert torch.equal(edit, expected[0])
    assert torch.equal(overlap, expected[1])


@pytest.mark.parametrize("kernel", [1, 2, 4, 8, SMALL, LARGE])
@pytest.mark.parametrize("width", [128, 640, 1536])
def test_kernels(run_scan, masks, kernel, width):
    """Queries that do not fill the last tile, rows that do not fill the last block, part of a stage."""
    queries = {SMALL: 37, LARGE: 130}.get(kernel, 2 * kernel + 1)
    query, store = masks("random", queries, width), masks("duplicated", 133, width)
    if width == 1536 and kernel == LARGE:
        query, store = query[:5], store[:5]
    assert_same(run_scan, kernel, query, store, max(1, len(store) - 2), width // 10)
    low = width // 6
    own = torch.randint(low, 2 * low, (len(store),), dtype=torch.int32)
    assert_same(run_scan, kernel, query, store, len(store), own)


@pytest.mark.parametrize("kernel", [1, 4, SMALL])
@pytest.mark.parametrize("kind", ["zeros", "ones", "single", "tied"])
def test_kinds(run_scan, masks, kernel, kind):
    assert_same(run_scan, kernel, masks(kind, 3, 300), masks(kind, 40, 300), 40, 1)
    assert_same(run_scan, kernel, masks(kind, 3, 300), masks(kind, 40, 300), 40, torch.arange(40).int() * 9 - 5)


@pytest.mark.parametrize("kernel", [1, 2, SMALL])
@pytest.mark.parametrize("count", [-(1 << 31), -1, 0, 1, 8, 9, 20, 21, (1 << 31) - 1])
def test_count_on_the_device_is_clamped(run_scan, masks, kernel, count):
    query, store = masks("random", 3, 256), masks("random", 20, 256)
    assert_same(run_scan, kernel, query, store, count, 5)


@pytest.mark.parametrize("kernel", [1, 8, SMALL])
def test_empty_store(run_scan, masks, kernel):
    assert_same(run_scan, kernel, masks("ones", 2, 128), masks("ones", 0, 128), 0, 1)


@pytest.mark.parametrize(("blocks", "threads"), [(1, 256), (3, 128), (7, 64)])
def test_grids(run_scan, masks, blocks, threads):
    assert_same(run_scan, 1, masks("random", 2, 14336), masks("tied", 75, 14336), 74, 1, blocks=blocks, threads=threads)
