"""The Triton kernels of `masked_linear` and its in-place form give the sum of the active columns, rounded once."""

import json

import pytest
import torch
from memoir_fast.kernels import _launch
from memoir_fast.kernels.masked_linear import masked_linear, masked_linear_add_

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _exact(x, memory, columns, route) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in float64 and the sum of its terms' absolute values; what is out of range counts as absent."""
    value = x.new_zeros((*x.shape[:2], memory.shape[1]), dtype=torch.float64)
    magnitude = value.clone()
    for row, edit in enumerate(route.tolist()):
        if 0 <= edit < len(columns):
            width, own, first = x.shape[2], columns[edit].long(), int(columns[edit, 0])
            page = first - first % width if 0 <= first < len(memory) else 0
            active = own[(own >= page) & (own < page + width)]
            inputs, weights = x[row][:, active - page].double(), memory[active].double()
            value[row], magnitude[row] = inputs @ weights, inputs.abs() @ weights.abs()
    return value, magnitude


def _case(draw, batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """x, memory, columns and route of one random call; inactive inputs may be poison where no dense pass can start."""
    width, outputs, edits = draw.size(1, 150), draw.pick(1, 17, 33, draw.size(1, 70)), draw.pick(1, 2, 5)
    k = draw.pick(1, width, max(1, width // 4), draw.size(1, width))
    dtype = draw.pick(*DTYPES)
    x, memory = draw.normal(batch, tokens, width, dtype=dtype), draw.normal(width, outputs, dtype=dtype)
    columns, route = draw.columns(edits, k, width), draw.integers(-1, edits, batch)
    if draw.chance(0.5):
        pages = draw.pick(2, 3, 40)
        page = draw.integers(0, pages, edits)
        table = memory.new_full((pages * width, outputs), float("nan"))
        for edit in range(edits):
            table[page[edit] * width : (page[edit] + 1) * width] = memory
        memory, columns = table, columns + width * page[:, None].int()
    if draw.chance(0.2):
        route = torch.where(draw.uniform(batch) < 0.4, route * 1000 + 100, route)
        columns = torch.where(draw.uniform(edits, k) < 0.2, columns - len(memory), columns)
    return x, memory, columns, route


def _check(draw, assert_product, x, memory, columns, route) -> None:
    value, magnitude = _exact(x, memory, columns, route)
    views = [draw.layout(tensor) for tensor in (x, memory, columns, route)]
    y = masked_linear(*views)
    assert y.is_contiguous()
    assert_product(y, value, magnitude, columns.shape[1])

    base = draw.normal(*y.shape, dtype=x.dtype)
    unrouted = (route < 0) | (route >= len(columns))
    base[unrouted] = draw.pick(float("nan"), -0.0)
    target = draw.layout(base.clone())
    outside = target._base.clone() if target._base is not None else None
    masked_linear_add_(target, *views)
    assert_product(target[~unrouted], (base + value)[~unrouted], (base.abs() + magnitude)[~unrouted], columns.shape[1])
    assert torch.equal(_bits(target[unrouted]), _bits(base[unrouted]))
    if outside is not None:
        target.copy_(base)
        assert torch.equal(_bits(target._base), _bits(outside))
    if draw.chance(0.2):
        assert torch.equal(_bits(masked_linear(*views)), _bits(y))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("seed", range(40))
def test_one_token(draw, assert_product, seed):
    x, memory, columns, _ = _case(draw, 1, 1)
    route = torch.tensor([draw.pick(0, len(columns) - 1, 0, -1, len(columns))], dtype=torch.int32, device=draw.device)
    x[0, 0, draw.size(0, x.shape[2] - 1)] = 2000.0
    _check(draw, assert_product, x, memory, columns, route)


@pytest.mark.parametrize("seed", range(40))
def test_few_tokens_of_several_sequences(draw, assert_product, seed):
    batch, tokens = draw.pick((0, 1), (1, 2), (1, 15), (2, 1), (2, 3), (3, 1), (4, 1), (3, 6), (2, 9))
    with _launch.override("masked_linear_rows", {"SPLITS": draw.pick(1, 1, 2, 4)}):
        _check(draw, assert_product, *_case(draw, batch, tokens))


@pytest.mark.parametrize("seed", range(40))
def test_prefill(draw, assert_product, seed):
    batch, tokens = draw.pick((0, 16), (1, 16), (1, 17), (2, 33), (1, 65), (3, 16), (1, 127), (1, 128), (2, 130))
    _check(draw, assert_product, *_case(draw, batch, tokens))


@pytest.mark.parametrize(("batch", "share"), [(3, 2), (5, 2), (6, 5), (17, 4)])
def test_many_routes_in_a_batch_take_the_dense_pass(draw, assert_product, batch, share):
    x, memory = draw.normal(batch, 1, 60, dtype=torch.float16), draw.normal(60, 40, dtype=torch.float16)
    columns, route = draw.columns(9, 60 // share, 60), draw.integers(-1, 9, batch)
    with _launch.override("masked_linear_rows", {"SPLITS": 1}):
        _check(draw, assert_product, x, memory, columns, route)


@pytest.mark.parametrize("splits", [2, 3, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_splits_are_added_up(draw, assert_product, splits, batch, tmp_path, monkeypatch):
    entry = {"*": {"SPLITS": splits, "BLOCK_K": 16}}
    table = {"*": {"masked_linear_one": entry, "masked_linear_rows": entry}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("MEMOIR_FAST_LAUNCH_TABLE", str(tmp_path / "table.json"))
    _launch.forget()
    try:
        x, memory = draw.normal(batch, 1, 130), draw.normal(130, 50)
        _check(draw, assert_product, x, memory, draw.columns(3, 101, 130), draw.integers(-1, 3, batch))
    finally:
        monkeypatch.undo()
        _launch.forget()


def test_inactive_inputs_and_rows_of_memory_are_never_used(draw, assert_product):
    for batch, tokens in ((1, 1), (1, 5), (1, 20), (1, 130)):
        x, memory = draw.normal(batch, tokens, 90), draw.normal(90, 40)
        columns, route = draw.columns(2, 20, 90), torch.ones(batch, dtype=torch.int32, device=draw.device)
        value, magnitude = _exact(x, memory, columns, route)
        inactive = torch.ones(90, dtype=torch.bool, device=draw.device)
        inactive[columns[1].long()] = False
        x[..., inactive], memory[inactive] = float("nan"), float("inf")
        assert_product(masked_linear(x, memory, columns, route), value, magnitude, 20)


def test_no_edits_at_all(draw):
    columns = torch.empty((0, 3), dtype=torch.int32, device=draw.device)
    for tokens in (1, 3, 20):
        y = masked_linear(draw.normal(2, tokens, 8), draw.normal(8, 5), columns, draw.integers(0, 4, 2))
        assert torch.equal(y, torch.zeros_like(y))


def test_a_real_layer(draw, assert_product):
    memory, columns = draw.normal(1536, 576, dtype=torch.bfloat16), draw.columns(2, 440, 1536)
    for tokens in (1, 5, 16):
        x = draw.normal(1, tokens, 1536, dtype=torch.bfloat16)
        route = torch.tensor([1], dtype=torch.int32, device=draw.device)
        assert_product(masked_linear(x, memory, columns, route), *_exact(x, memory, columns, route), 440)
