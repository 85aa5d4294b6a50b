"""`code_route` against choosing one code after the other, in Python."""

import pytest
import torch

from memoir_fast.ops import code_route

OP = "code_route"
SIZES = [(1, 1, 1), (1, 3, 4), (5, 3, 7), (130, 3, 40), (40, 9, 3)]


def drawn(prompts, codes, stored, device, most=5):
    """Overlaps of few values tie; a third of the codes match nothing, a third of the rows lead to no edit."""
    row, overlap = torch.randint(-1, stored, (prompts, codes)), torch.randint(0, most, (prompts, codes))
    row[torch.rand(row.shape) < 0.3] = -1
    owner, room = torch.randint(0, 90, (stored,)), torch.randint(0, 3, (stored,))
    return tuple(one.int().to(device) for one in (row, overlap, owner, room))


def oracle(row, overlap, owner, room):
    found = []
    for rows, bits in zip(row.tolist(), overlap.tolist(), strict=True):
        codes = [one for one in range(len(rows)) if rows[one] >= 0] or range(len(rows))
        decides = max(codes, key=bits.__getitem__)  # of equal ones, the first
        leads = rows[decides] >= 0 and room[rows[decides]] > 0
        found.append((owner[rows[decides]].item() if leads else -1, bits[decides]))
    return [edit for edit, _ in found], [bits for _, bits in found]


def assert_matches_oracle(op, *given):
    route, overlap = op(*given)
    assert route.dtype == overlap.dtype == torch.int32 and route.shape == overlap.shape == (len(given[0]),)
    assert (route.tolist(), overlap.tolist()) == oracle(*given)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_random(op, backend, sizes):
    assert_matches_oracle(op, *drawn(*sizes, backend.device))
    assert_matches_oracle(op, *drawn(*sizes, backend.device, most=2**31 - 1))


def test_known_answers(op, backend):
    """A code that matches goes before those that do not; of equal ones the first; a kept prompt's row leads nowhere."""
    row = [[-1, 1, -1], [2, 1, 0], [0, 1, 2], [3, 0, 0], [-1, -1, -1], [0, 3, -1]]
    overlap = [[9, 3, 8], [4, 4, 4], [4, 5, 5], [7, 6, 6], [3, 5, 5], [7, 7, 9]]
    given = (row, overlap, [10, 11, 12, 13], [9, 1, 440, 0])
    route, bits = op(*(torch.tensor(one, dtype=torch.int32, device=backend.device) for one in given))
    assert route.tolist() == [11, 12, 11, -1, -1, 10]
    assert bits.tolist() == [3, 4, 5, 7, 5, 7]


def test_empty(op, backend):
    row, overlap, owner, room = drawn(0, 3, 2, backend.device)
    for stored in (0, 2):
        route, bits = op(row, overlap, owner[:stored], room[:stored])
        assert route.shape == bits.shape == (0,)


def test_strided_inputs(op, backend):
    row, overlap, owner, room = drawn(12, 6, 9, backend.device)
    apart = (row % 3)[::2, ::2], overlap.T[:6, :3], owner[::3], room[::3]
    assert not any(one.is_contiguous() for one in apart)
    assert_matches_oracle(op, *apart)


CODES, ROWS = torch.zeros(2, 3).int(), torch.zeros(4).int()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((CODES.long(), CODES, ROWS, ROWS), TypeError, "row must be int32 [B, Q], got int64 [2, 3]"),
        ((CODES, CODES[:1], ROWS, ROWS), ValueError, "overlap must be int32 [2, 3], got int32 [1, 3]"),
        ((CODES, CODES, ROWS.float(), ROWS), TypeError, "owner must be int32 [C], got float32 [4]"),
        ((CODES, CODES, ROWS, ROWS[:3]), ValueError, "room must be int32 [4], got int32 [3]"),
        ((CODES[:, :0], CODES[:, :0], ROWS, ROWS), ValueError, "row must be int32 [B, Q] with Q > 0, got int32 [2, 0]"),
        ((CODES + 4, CODES, ROWS, ROWS), ValueError, "row must lie in [-1, 4), got values from 4 to 4"),
        ((CODES - 2, CODES, ROWS, ROWS), ValueError, "row must lie in [-1, 4), got values from -2 to -2"),
        (
            (CODES - 1, CODES, ROWS[:0], ROWS[:0]),
            ValueError,
            "owner must be int32 [C] with C > 0 where there is a prompt, got int32 [0]",
        ),
    ],
)
def test_errors(given, error, message):
    with pytest.raises(error) as caught:
        code_route(*given)
    assert str(caught.value) == message


def test_opcheck(opcheck, backend):
    opcheck(OP, *drawn(5, 3, 8, backend.device))


def test_compiles_whole(backend, same_compiled):
    same_compiled(*drawn(5, 3, 8, backend.device))
