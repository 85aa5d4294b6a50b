"""`route_rows` against reading masks bit by bit."""

import pytest
import torch

from memoir_fast.ops import route_rows

OP = "route_rows"

SIZES = [(1, 1, 4, 1), (3, 1, 4, 128), (2, 7, 8, 63), (5, 65, 12, 65), (2, 3, 60, 1000), (4, 2, 448, 4096)]


def drawn(edits, batch, words, device):
    mask = torch.randint(-(2**31), 2**31, (edits, words)).int().to(device)
    page, route = torch.randint(0, 5, (edits,)).int(), torch.randint(-1, edits, (batch,)).int()
    return mask, page.to(device), route.to(device)


def oracle(mask, page, route, k, width):
    """Rows and first, by the binary digits that Python writes."""
    rows, route = [], route.tolist()
    for edit in route:
        words, base = mask[max(edit, 0)].tolist(), page[max(edit, 0)].item() * width
        whole = sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(words))
        bits = [base + bit for bit, digit in enumerate(reversed(f"{whole:b}")) if digit == "1"][:k]
        rows.append(bits + [base - 1] * (k - len(bits)))
    return rows, [-1 if edit < 0 else route.index(edit) for edit in route]


def assert_matches_oracle(op, *given):
    rows, first = op(*given)
    _, _, route, k, _ = given
    assert rows.dtype == first.dtype == torch.int32 and rows.is_contiguous()
    assert rows.shape == (len(route), k) and first.shape == route.shape
    assert (rows.tolist(), first.tolist()) == oracle(*given)


@pytest.mark.parametrize(("edits", "batch", "words", "k"), SIZES)
def test_random(op, backend, edits, batch, words, k):
    mask, page, route = drawn(edits, batch, words, backend.device)
    assert_matches_oracle(op, mask, page, route, k, 32 * words)
    mask &= drawn(edits, batch, words, backend.device)[0]
    mask[0] = 0  # a deleted edit
    assert_matches_oracle(op, mask, page, route, k, 32 * words - 5)


def test_known_answers(op, backend):
    mask = torch.tensor([[5, 0, 1, 0], [0, 0, 0, -(2**31)]], dtype=torch.int32, device=backend.device)
    page = torch.tensor([0, 3], dtype=torch.int32, device=backend.device)
    route = torch.tensor([1, -1, 0, 1, 1, -1], dtype=torch.int32, device=backend.device)
    rows, first = op(mask, page, route, 3, 1000)
    own, other = [3127, 2999, 2999], [0, 2, 64]
    assert rows.tolist() == [own, other, other, own, own, other]
    assert first.tolist() == [0, -1, 2, 0, 0, -1]


def test_empty(op, backend):
    mask, page, route = drawn(2, 0, 4, backend.device)
    for edits in (0, 2):
        rows, first = op(mask[:edits], page[:edits], route, 5, 128)
        assert rows.shape == (0, 5) and first.shape == (0,)


def test_strided_inputs(op, backend):
    mask, page, route = drawn(8, 12, 16, backend.device)
    apart = mask[::2, ::2], page[::2], (route % 4)[::3]
    assert not any(one.is_contiguous() for one in apart)
    assert_matches_oracle(op, *apart, 70, 256)
    assert_matches_oracle(op, mask.T, torch.zeros(16, device=backend.device).int(), route, 40, 256)


def test_same_call_same_bits(op, backend):
    given = drawn(4, 9, 60, backend.device)
    for one, other in zip(op(*given, 900, 1920), op(*given, 900, 1920), strict=True):
        assert torch.equal(one, other)


MASK, PAGE, ROUTE = torch.zeros(2, 4).int(), torch.zeros(2).int(), torch.zeros(1).int()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((MASK.float(), PAGE, ROUTE, 1, 9), TypeError, "mask must be int32 [C, W], got float32 [2, 4]"),
        ((MASK, PAGE[:1], ROUTE, 1, 9), ValueError, "page must be int32 [2], got int32 [1]"),
        ((MASK, PAGE, ROUTE.long(), 1, 9), TypeError, "route must be int32 [B], got int64 [1]"),
        ((MASK, PAGE, ROUTE, 0, 9), ValueError, "k must lie in [1, 32 W = 128], got 0"),
        ((MASK, PAGE, ROUTE, 129, 9), ValueError, "k must lie in [1, 32 W = 128], got 129"),
        ((MASK, PAGE, ROUTE, 1, 0), ValueError, "width must lie in [1, 2147483648), got 0"),
        ((MASK, PAGE, ROUTE + 2, 1, 9), ValueError, "route must lie in [-1, 2), got values from 2 to 2"),
        ((MASK, PAGE, ROUTE - 2, 1, 9), ValueError, "route must lie in [-1, 2), got values from -2 to -2"),
        (
            (MASK[:0], PAGE[:0], ROUTE - 1, 1, 9),
            ValueError,
            "mask must be int32 [C, W] with C > 0 where there is a route, got int32 [0, 4]",
        ),
    ],
)
def test_errors(given, error, message):
    with pytest.raises(error) as caught:
        route_rows(*given)
    assert str(caught.value) == message


def test_opcheck(opcheck, backend):
    opcheck(OP, *drawn(3, 5, 8, backend.device), 20, 256)
    opcheck(OP, *drawn(3, 1, 8, backend.device), 20, 256)


def test_compiles_whole(backend, same_compiled):
    same_compiled(*drawn(3, 5, 8, backend.device), 20, 256)
