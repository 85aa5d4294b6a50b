"""Raw calls with arguments that no caller should give: an error, never a read out of bounds."""

import pytest
import torch

INT = torch.int32


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=INT)


def count(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=INT)


PERMUTATION = torch.arange(10, dtype=INT)
X, MEMORY, COLUMNS, ROUTE = torch.randn(2, 1, 10), torch.randn(10, 6), torch.tensor([[0, 9]], dtype=INT), ints(2)
MARKED = torch.ones(2, 1, dtype=torch.bool)
HUGE = 1 << 62

CASES = {
    "overlap: float query": ("mask_overlap", (torch.zeros(1, 4), ints(3, 4))),
    "overlap: int64 store": ("mask_overlap", (ints(1, 4), ints(3, 4).long())),
    "overlap: one axis": ("mask_overlap", (ints(4), ints(3, 4))),
    "overlap: three axes": ("mask_overlap", (ints(1, 4), ints(1, 3, 4))),
    "overlap: other width": ("mask_overlap", (ints(1, 4), ints(3, 8))),
    "overlap: width not of 16 bytes": ("mask_overlap", (ints(1, 3), ints(3, 3))),
    "overlap: no words": ("mask_overlap", (ints(1, 0), ints(3, 0))),
    "overlap: too many rows": ("mask_overlap", (ints(1, 4), ints(1, 4).expand(1 << 31, 4))),
    "match: negative count": ("mask_match", (ints(1, 4), ints(3, 4), count(-1), ints(3))),
    "match: smallest count": ("mask_match", (ints(1, 4), ints(3, 4), count(-(1 << 31)), ints(3))),
    "match: count past the store": ("mask_match", (ints(1, 4), ints(3, 4), count(4), ints(3))),
    "match: huge count": ("mask_match", (ints(1, 4), ints(3, 4), count((1 << 31) - 1), ints(3))),
    "match: int64 count": ("mask_match", (ints(1, 4), ints(3, 4), torch.tensor(1), ints(3))),
    "match: count with an axis": ("mask_match", (ints(1, 4), ints(3, 4), ints(1), ints(3))),
    "match: thresholds of fewer rows": ("mask_match", (ints(1, 4), ints(3, 4), count(1), ints(2))),
    "match: one threshold": ("mask_match", (ints(1, 4), ints(3, 4), count(1), count(1))),
    "match: int64 thresholds": ("mask_match", (ints(1, 4), ints(3, 4), count(1), ints(3).long())),
    "tophash: double": ("tophash", (torch.randn(1, 10).double(), 2, PERMUTATION)),
    "tophash: one axis": ("tophash", (torch.randn(10), 2, PERMUTATION)),
    "tophash: k 0": ("tophash", (torch.randn(1, 10), 0, PERMUTATION)),
    "tophash: k past D": ("tophash", (torch.randn(1, 10), 11, PERMUTATION)),
    "tophash: huge k": ("tophash", (torch.randn(1, 10), HUGE, PERMUTATION)),
    "tophash: no columns": ("tophash", (torch.randn(1, 0), 1, ints(0))),
    "tophash: short permutation": ("tophash", (torch.randn(1, 10), 2, PERMUTATION[:9])),
    "tophash: permutation past D": ("tophash", (torch.randn(1, 10), 2, PERMUTATION + 1)),
    "tophash: negative permutation": ("tophash", (torch.randn(1, 10), 2, PERMUTATION - 1)),
    "tophash: repeats": ("tophash", (torch.randn(1, 10), 5, ints(10))),
    "columns: float mask": ("mask_columns", (torch.zeros(1, 4), 1)),
    "columns: int64 mask": ("mask_columns", (ints(1, 4).long(), 1)),
    "columns: one axis": ("mask_columns", (ints(4), 1)),
    "columns: k 0": ("mask_columns", (ints(1, 4), 0)),
    "columns: negative k": ("mask_columns", (ints(1, 4), -1)),
    "columns: k past the bits": ("mask_columns", (ints(1, 4), 129)),
    "columns: huge k": ("mask_columns", (ints(1, 4), HUGE)),
    "columns: no words": ("mask_columns", (ints(1, 0), 1)),
    "rows: float mask": ("route_rows", (torch.zeros(3, 4), ints(3), ints(1), 1, 128)),
    "rows: one axis": ("route_rows", (ints(4), ints(4), ints(1), 1, 128)),
    "rows: pages of fewer masks": ("route_rows", (ints(3, 4), ints(2), ints(1), 1, 128)),
    "rows: int64 page": ("route_rows", (ints(3, 4), ints(3).long(), ints(1), 1, 128)),
    "rows: int64 route": ("route_rows", (ints(3, 4), ints(3), ints(1).long(), 1, 128)),
    "rows: route with two axes": ("route_rows", (ints(3, 4), ints(3), ints(1, 1), 1, 128)),
    "rows: route past the store": ("route_rows", (ints(3, 4), ints(3), ints(1) + 3, 1, 128)),
    "rows: route below -1": ("route_rows", (ints(3, 4), ints(3), ints(1) - 2, 1, 128)),
    "rows: huge route": ("route_rows", (ints(3, 4), ints(3), ints(1) + ((1 << 31) - 1), 1, 128)),
    "rows: no masks": ("route_rows", (ints(0, 4), ints(0), ints(1) - 1, 1, 128)),
    "rows: no words": ("route_rows", (ints(3, 0), ints(3), ints(1), 1, 128)),
    "rows: k 0": ("route_rows", (ints(3, 4), ints(3), ints(1), 0, 128)),
    "rows: k past the bits": ("route_rows", (ints(3, 4), ints(3), ints(1), 129, 128)),
    "rows: huge k": ("route_rows", (ints(3, 4), ints(3), ints(1), HUGE, 128)),
    "rows: no width": ("route_rows", (ints(3, 4), ints(3), ints(1), 1, 0)),
    "rows: huge width": ("route_rows", (ints(3, 4), ints(3), ints(1), 1, HUGE)),
    "codes: int64 row": ("code_route", (ints(2, 3).long(), ints(2, 3), ints(4), ints(4))),
    "codes: one axis": ("code_route", (ints(3), ints(3), ints(4), ints(4))),
    "codes: fewer overlaps": ("code_route", (ints(2, 3), ints(2, 2), ints(4), ints(4))),
    "codes: float overlap": ("code_route", (ints(2, 3), torch.zeros(2, 3), ints(4), ints(4))),
    "codes: owner with two axes": ("code_route", (ints(2, 3), ints(2, 3), ints(4, 1), ints(4))),
    "codes: less room": ("code_route", (ints(2, 3), ints(2, 3), ints(4), ints(3))),
    "codes: none": ("code_route", (ints(2, 0), ints(2, 0), ints(4), ints(4))),
    "codes: no rows": ("code_route", (ints(2, 3) - 1, ints(2, 3), ints(0), ints(0))),
    "codes: row past the store": ("code_route", (ints(2, 3) + 4, ints(2, 3), ints(4), ints(4))),
    "codes: row below -1": ("code_route", (ints(2, 3) - 2, ints(2, 3), ints(4), ints(4))),
    "codes: huge row": ("code_route", (ints(2, 3) + ((1 << 31) - 1), ints(2, 3), ints(4), ints(4))),
    "feature: int x": ("prompt_feature", (ints(2, 1, 10), MARKED, torch.zeros(10))),
    "feature: int mask": ("prompt_feature", (X, MARKED.int(), torch.zeros(10))),
    "feature: short mask": ("prompt_feature", (X, MARKED[:1], torch.zeros(10))),
    "feature: short mu": ("prompt_feature", (X, MARKED, torch.zeros(9))),
    "feature: double mu": ("prompt_feature", (X, MARKED, torch.zeros(10).double())),
    "linear: int x": ("masked_linear", (X.int(), MEMORY.int(), COLUMNS, ROUTE)),
    "linear: other dtype": ("masked_linear", (X, MEMORY.double(), COLUMNS, ROUTE)),
    "linear: two axes": ("masked_linear", (X[0], MEMORY, COLUMNS, ROUTE)),
    "linear: short memory": ("masked_linear", (X, MEMORY[:9], COLUMNS, ROUTE)),
    "linear: int64 columns": ("masked_linear", (X, MEMORY, COLUMNS.long(), ROUTE)),
    "linear: no columns": ("masked_linear", (X, MEMORY, COLUMNS[:, :0], ROUTE)),
    "linear: more columns than D": ("masked_linear", (X, MEMORY, ints(1, 11), ROUTE)),
    "linear: column past D": ("masked_linear", (X, MEMORY, COLUMNS + 1, ROUTE)),
    "linear: negative column": ("masked_linear", (X, MEMORY, COLUMNS - 1, ROUTE)),
    "linear: route past the store": ("masked_linear", (X, MEMORY, COLUMNS, ROUTE + 1)),
    "linear: route below -1": ("masked_linear", (X, MEMORY, COLUMNS, ROUTE - 2)),
    "linear: huge route": ("masked_linear", (X, MEMORY, COLUMNS, ROUTE + ((1 << 31) - 1))),
    "linear: route into no store": ("masked_linear", (X, MEMORY, COLUMNS[:0], ROUTE)),
    "linear: short route": ("masked_linear", (X, MEMORY, COLUMNS, ROUTE[:1])),
    "add: other shape": ("masked_linear_add_", (torch.zeros(2, 1, 5), X, MEMORY, COLUMNS, ROUTE)),
    "add: other dtype": ("masked_linear_add_", (torch.zeros(2, 1, 6).double(), X, MEMORY, COLUMNS, ROUTE)),
    "add: expanded base": ("masked_linear_add_", (torch.zeros(1, 1, 6).expand(2, 1, 6), X, MEMORY, COLUMNS, ROUTE)),
    "add: route past the store": ("masked_linear_add_", (torch.zeros(2, 1, 6), X, MEMORY, COLUMNS, ROUTE + 1)),
}
LEFT_TO_THE_KERNEL = ("overlap: too many rows", "tophash: repeats")  # the public op does not look at these two


@pytest.mark.parametrize("name", CASES)
def test_raises(raw, cpu_path, name):
    op, arguments = CASES[name]
    with pytest.raises(RuntimeError, match=r"must|too|lie in"):
        getattr(raw, op)(*arguments)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("add:") and n not in LEFT_TO_THE_KERNEL])
def test_raises_through_the_public_op(extension, name):
    op, arguments = CASES[name]
    with pytest.raises((TypeError, ValueError), match=r"^\w+ must (be|lie in) .+, got .+"):
        getattr(torch.ops.memoir_fast, op)(*arguments)


def test_tensors_of_two_devices_raise(raw):
    for op, arguments in {
        "mask_overlap": (ints(1, 4), ints(3, 4).to("meta")),
        "mask_match": (ints(1, 4), ints(3, 4), count(1).to("meta"), ints(3)),
        "tophash": (torch.randn(1, 10), 2, PERMUTATION.to("meta")),
        "prompt_feature": (X, MARKED.to("meta"), torch.zeros(10)),
        "masked_linear": (X, MEMORY.to("meta"), COLUMNS, ROUTE),
    }.items():
        with pytest.raises((RuntimeError, ValueError), match="device"):
            getattr(raw, op)(*arguments)


def test_sparse_tensors_raise(raw):
    with pytest.raises(NotImplementedError, match="mask_overlap' with arguments from the 'SparseCPU' backend"):
        raw.mask_overlap(ints(1, 4), ints(3, 4).to_sparse())
    with pytest.raises(NotImplementedError, match="masked_linear' with arguments from the 'SparseCPU' backend"):
        raw.masked_linear(X, MEMORY.to_sparse(), COLUMNS, ROUTE)


def test_empty_tensors(raw):
    assert raw.mask_overlap(ints(0, 4), ints(0, 4)).shape == (0, 0)
    assert raw.mask_overlap(ints(2, 4), ints(0, 4)).shape == (2, 0)
    edit, overlap = raw.mask_match(ints(2, 4), ints(0, 4), count(0), ints(0))
    assert (edit.tolist(), overlap.tolist()) == ([-1, -1], [0, 0])
    assert raw.masked_linear(X[:0], MEMORY, COLUMNS, ROUTE[:0]).shape == (0, 1, 6)
    assert raw.masked_linear(X[:, :0], MEMORY, COLUMNS, ROUTE).shape == (2, 0, 6)
    assert raw.masked_linear(X, MEMORY[:, :0], COLUMNS, ROUTE).shape == (2, 1, 0)
    assert not raw.masked_linear(X, MEMORY, COLUMNS[:0], ROUTE - 1).any()


def test_bytes_off_a_word_boundary(raw, cpu_path):
    data = bytearray(range(256)) * 2
    words = torch.frombuffer(data, dtype=INT, offset=1, count=64).view(8, 8)
    assert words.data_ptr() % 4
    assert torch.equal(raw.mask_overlap(words[:3], words), raw.mask_overlap(words[:3].clone(), words.clone()))
