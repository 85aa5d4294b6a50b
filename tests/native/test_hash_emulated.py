"""CUDA kernels that hash, list columns and decide on routes without a GPU: every CUDA thread a fiber."""

import ctypes
import math

import pytest
import torch

from memoir_fast.mask_format import words
from memoir_fast.reference.code_route import code_route
from memoir_fast.reference.mask_columns import mask_columns
from memoir_fast.reference.prompt_feature import prompt_feature
from memoir_fast.reference.route_rows import route_rows
from memoir_fast.reference.tophash import tophash

FORMS = {0: 512, 1: 1792, 2: 2048, 3: 8192, 4: 14336, 5: 16384}  # the widest row that each holds
UNWRITTEN = -1234567


@pytest.fixture
def library(emulated):
    return emulated("hash")


@pytest.fixture(params=["fibers", "threads"])
def tophash_library(request, emulated):
    """In threads, too: its counters are shared."""
    return emulated("hash", *(["-DEMULATE_THREADS"] if request.param == "threads" else []))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def assert_same_hash(library, form, feature, k):
    rows, width = feature.shape
    assert width <= FORMS[form]
    permutation = torch.randperm(width).int()
    mask = torch.full((rows, words(width)), UNWRITTEN, dtype=torch.int32)
    columns = torch.full((rows, k), UNWRITTEN, dtype=torch.int32)
    tail = -math.log(min(k, width - 0.5) / width)
    reach = int((0.5772 + math.log(tail)) / math.log(2) * 2**23)
    stride = feature.stride(0)
    library.run_tophash(
        form, pointer(feature), pointer(permutation), pointer(mask), pointer(columns), rows, width, k,
        mask.shape[1], stride, int(stride % 4 == 0 and feature.data_ptr() % 16 == 0), reach,
    )  # fmt: skip
    expected = tophash(feature, k, permutation)
    assert torch.equal(mask, expected[0]) and torch.equal(columns, expected[1])


def of_kind(kind, rows, width):
    feature = torch.randn(rows, width)
    if kind == "ties":
        return feature.bfloat16().float()
    if kind == "many ties":
        return (2 * feature).round()
    if kind == "equal":
        return torch.full_like(feature, -2.5)
    if kind == "zeros":
        return feature * (torch.rand_like(feature) > 0.9)
    if kind == "subnormal":
        return feature * 1e-41
    if kind == "huge":
        return feature.sign() * (2.3e38 + 1e38 * torch.rand_like(feature))
    if kind == "not finite":
        feature[0, width // 2], feature[-1, 0] = float("nan"), float("-inf")
    return feature


@pytest.mark.parametrize("kind", ["normal", "ties", "many ties", "equal", "zeros", "subnormal", "huge", "not finite"])
@pytest.mark.parametrize("width", [1, 3, 63, 65, 128, 500])
@pytest.mark.parametrize("form", [0, 1])
def test_tophash(tophash_library, form, width, kind):
    for k in {1, max(1, width // 4), max(1, width - 1), width}:
        assert_same_hash(tophash_library, form, of_kind(kind, 3, width), k)


@pytest.mark.parametrize(("form", "width", "k"), [(2, 1536, 440), (2, 2048, 1), (3, 8001, 2000), (4, 14336, 4096)])
@pytest.mark.parametrize("kind", ["normal", "ties", "many ties"])
def test_tophash_as_it_is_launched(tophash_library, form, width, k, kind):
    assert_same_hash(tophash_library, form, of_kind(kind, 1, width), k)


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_tophash_of_the_widest_row(tophash_library, kind):
    assert_same_hash(tophash_library, 5, of_kind(kind, 1, 16384), 4681)


def test_tophash_of_rows_apart(tophash_library):
    apart = torch.randn(4, 600)
    assert_same_hash(tophash_library, 1, apart[:, 1:502], 100)
    assert_same_hash(tophash_library, 1, apart[:, 4:504], 100)


@pytest.mark.parametrize("pieces", [8, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "tokens", "width"), [(1, 1, 8), (2, 31, 64), (1, 33, 136), (1, 70, 1032), (1, 300, 72), (1, 1100, 20)]
)
def test_prompt_feature(library, pieces, dtype, batch, tokens, width):
    apart = -(-width // 8) * 8  # each token begins on a 16-byte boundary, which the op asks for
    wide = torch.full((batch, tokens, apart), float("nan"), dtype=dtype)
    x, mu = wide[..., :width], torch.randn(width)
    x.copy_(torch.randn(batch, tokens, width) + 0.3)
    masks = {
        "all": torch.ones(batch, tokens, dtype=torch.bool),
        "holes": torch.rand(batch, tokens) > 0.3,
        "left padding": (torch.arange(tokens) >= tokens // 2).expand(batch, -1).contiguous(),
        "right padding": (torch.arange(tokens) <= tokens // 2).expand(batch, -1).contiguous(),
        "none": torch.zeros(batch, tokens, dtype=torch.bool),
    }
    masks["holes"][:, -1] = True
    for name, marked in masks.items():
        out = torch.full((batch, width), float(UNWRITTEN))
        library.run_feature(
            [torch.float32, torch.float16, torch.bfloat16].index(dtype), pieces, pointer(x), pointer(marked),
            pointer(mu), pointer(out), batch, tokens, width, apart, 1,
        )  # fmt: skip
        expected = prompt_feature(x, marked, mu)
        assert torch.equal(out.nan_to_num(1.5), expected.nan_to_num(1.5)), name
        assert out.isnan().all() == (name == "none")


@pytest.mark.parametrize(("count", "k"), [(4, 1), (4, 128), (60, 400), (448, 4096), (516, 3000), (1100, 17)])
def test_mask_columns(library, count, k):
    drawn = torch.randint(-(2**31), 2**31 - 1, (4, count)).int()
    drawn[1], drawn[2] = 0, -1
    drawn[3] &= drawn[0].roll(1) & drawn[0].roll(2)
    columns = torch.full((4, k), UNWRITTEN, dtype=torch.int32)
    library.run_columns(pointer(drawn), pointer(columns), 4, count, k)
    assert torch.equal(columns, mask_columns(drawn, k))


@pytest.mark.parametrize(
    ("batch", "count", "k"), [(1, 4, 1), (3, 60, 400), (2, 448, 4096), (1, 516, 3000), (40, 4, 100), (70, 8, 9)]
)
def test_route_rows(library, batch, count, k):
    """Few edits, so that many sequences follow the same; rows lie apart, and one edit was deleted."""
    drawn = torch.randint(-(2**31), 2**31 - 1, (5, count + 3)).int()
    drawn[1], drawn[2, :count] = 0, -1
    page, route = torch.randint(0, 4, (5,)).int(), torch.randint(-1, 5, (batch,)).int()
    rows, first = (torch.full(shape, UNWRITTEN, dtype=torch.int32) for shape in ((batch, k), (batch,)))
    library.run_rows(
        pointer(drawn), pointer(page), pointer(route), pointer(rows), pointer(first), 5, batch, count, count + 3, k,
        32 * count,
    )  # fmt: skip
    expected = route_rows(drawn[:, :count], page, route, k, 32 * count)
    assert torch.equal(rows, expected[0]) and torch.equal(first, expected[1])


def test_a_route_past_the_store_reads_nothing(library):
    """Guarded by the sanitizers: there is no sixth mask, and no sixth page."""
    drawn, page, route = torch.full((5, 4), -1).int(), torch.ones(5).int(), torch.tensor([5, 2, 2**31 - 1, 2]).int()
    rows, first = (torch.full(shape, UNWRITTEN, dtype=torch.int32) for shape in ((4, 3), (4,)))
    library.run_rows(
        pointer(drawn), pointer(page), pointer(route), pointer(rows), pointer(first), 5, 4, 4, 4, 3, 100
    )  # fmt: skip
    assert rows.tolist() == [[-1, -1, -1], [100, 101, 102], [-1, -1, -1], [100, 101, 102]]
    assert first.tolist() == [-1, 1, -1, 1]


@pytest.mark.parametrize(("prompts", "codes", "stored"), [(1, 1, 1), (3, 3, 9), (128, 3, 5), (300, 7, 40)])
def test_code_route(library, prompts, codes, stored):
    row, overlap = torch.randint(-1, stored, (prompts, codes)).int(), torch.randint(0, 4, (prompts, codes)).int()
    owner, room = torch.randint(0, 99, (stored,)).int(), torch.randint(-1, 3, (stored,)).int()
    row[prompts // 2 :: 7] = -1
    route, best = (torch.full((prompts,), UNWRITTEN, dtype=torch.int32) for _ in range(2))
    library.run_decision(*map(pointer, (row, overlap, owner, room, route, best)), prompts, codes, stored)
    expected = code_route(row, overlap, owner, room)
    assert torch.equal(route, expected[0]) and torch.equal(best, expected[1])


def test_a_row_past_the_store_is_of_no_edit(library):
    """Guarded by the sanitizers: there is no fourth row."""
    row, overlap = torch.tensor([[0, 3], [2**31 - 1, 0], [1, -1]]).int(), torch.tensor([[5, 6], [5, 5], [5, 9]]).int()
    ones, route, best = torch.ones(3).int(), torch.zeros(3).int(), torch.zeros(3).int()
    library.run_decision(*map(pointer, (row, overlap, ones, ones, route, best)), 3, 2, 3)
    assert route.tolist() == [-1, -1, 1] and best.tolist() == [6, 5, 5]
