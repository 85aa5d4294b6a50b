"""masked_linear's CUDA kernels on a device: which calls they take, and the reference's result."""

import pytest
import torch

from memoir_fast import backends
from memoir_fast.distributed.row_parallel import NO_ROW
from memoir_fast.errors import BackendError
from memoir_fast.ops import linear_limits, masked_linear, masked_linear_add_

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def on_cuda(extension):
    if "masked_linear" not in extension.ops("cuda"):
        pytest.skip("the extension was built without CUDA")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the kernels need compute capability 9.0")
    with backends.use("cuda"):
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1536, 576, 440, 3),
        (1, 1, 14336, 4096, 4096, 2),
        (1, 3, 300, 8, 77, 2),
        (8, 1, 700, 1000, 65, 3),
        (2, 4, 100, 264, 63, 2),
        (1, 33, 1536, 576, 440, 1),
        (1, 120, 300, 264, 65, 1),
        (4, 30, 300, 520, 1, 3),
        (100, 1, 300, 40, 90, 60),
    ],
    ids=str,
)
@pytest.mark.usefixtures("on_cuda", "poison")
def test_shapes(linear_inputs, assert_rounded_once, dtype, shape):
    if dtype == torch.float32 and (shape[0] * shape[1] > 8 or shape[0] > 4):
        pytest.skip("float32 of more than eight tokens or four sequences is Triton's")
    arguments = linear_inputs(*shape, dtype, "cuda")
    y = masked_linear(*arguments)
    assert backends.last_used()["masked_linear"] == "cuda"
    assert_rounded_once(y, arguments)
    unrouted = arguments[3] < 0
    assert not y[unrouted].any()
    assert torch.equal(masked_linear(*arguments), y)
    base = torch.randn_like(y)
    base[unrouted] = float("nan")
    changed = masked_linear_add_(base.clone(), *arguments)
    assert backends.last_used()["masked_linear_add_"] == "cuda"
    assert changed[unrouted].isnan().all()
    x, memory, columns, route = arguments
    assert_rounded_once(changed[~unrouted], (x[~unrouted], memory, columns, route[~unrouted]), base[~unrouted])


@pytest.mark.gpu
@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("batch", "tokens", "dtype"),
    [(1, 1, torch.float32), (1, 1, torch.bfloat16), (4, 1, torch.bfloat16), (2, 20, torch.float16)],
    ids=str,
)
def test_layers_beside_one_another_on_several_pages(linear_inputs, on_pages, assert_rounded_once, batch, tokens, dtype):
    """As a memory in two layers calls it: a slice of wider rows, of which none but the edits' pages may be read."""
    x, memory, columns, route = on_pages(linear_inputs(batch, tokens, 300, 264, 77, 5, dtype), pages=4)
    wide = torch.full((len(memory), 2 * 264), float("nan"), dtype=dtype)
    wide[:, 264:] = memory
    kept = columns[:, :50].cuda()
    columns[:, 50:] = NO_ROW
    x, memory, wide, columns, route = (one.cuda() for one in (x, memory, wide, columns, route))
    y = masked_linear(x, wide[:, 264:], columns, route)
    assert backends.last_used()["masked_linear"] == "cuda"
    assert_rounded_once(y, (x, memory, kept, route))
    assert torch.equal(masked_linear(x, memory, columns, route), y)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_graph_follows_the_route_that_it_finds(linear_inputs, tokens):
    x, memory, columns, route = linear_inputs(1, tokens, 300, 64, 77, 3, torch.bfloat16, "cuda")
    base = torch.zeros(1, tokens, 64, device="cuda", dtype=torch.bfloat16)
    masked_linear_add_(base, x, memory, columns, route)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2):
            masked_linear_add_(base, x, memory, columns, route)
    for edit in (0, -1, 2):
        route.fill_(edit)
        base.zero_()
        graph.replay()
        expected = torch.zeros_like(base)
        for _ in range(2):
            masked_linear_add_(expected, x, memory, columns, route)
        assert torch.equal(base, expected)
        assert bool(base.any()) == (edit >= 0)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": 129}, "at most 128 tokens"),
        ({"dtype": torch.float32, "tokens": 1, "batch": 5}, "of at most 4 sequences"),
        ({"outputs": 12}, "whole pieces of 16 bytes"),
        ({"dtype": torch.float64}, "serves float16, bfloat16 and float32, got float64"),
        ({"dtype": torch.float32, "tokens": 9}, "at most 8 tokens"),
    ],
    ids=str,
)
def test_what_it_cannot_serve_is_left_to_others(linear_inputs, assert_rounded_once, change, reason):
    sizes = {"batch": 1, "tokens": 3, "width": 64, "outputs": 32, "k": 9, "edits": 2, "dtype": torch.bfloat16} | change
    arguments = linear_inputs(*sizes.values(), "cuda")
    with pytest.raises(BackendError, match=reason):
        masked_linear(*arguments)
    with backends.use("auto"):
        assert_rounded_once(masked_linear(*arguments), arguments)
    assert backends.last_used()["masked_linear"] == ("reference" if sizes["dtype"] == torch.float64 else "triton")


def test_tensors_of_another_device_are_refused(linear_inputs):
    assert backends.limits("masked_linear", "cpu") is None
    arguments = linear_inputs(1, 1, 8, 8, 2, 1, torch.float32)
    assert backends.limits("masked_linear", "cuda")(*arguments) == "needs cuda tensors, got cpu"


class _OnGpu:
    """A CPU tensor that says it lies on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, tensor):
        self._tensor = tensor

    def __getattr__(self, name):
        return getattr(self._tensor, name)


@pytest.mark.parametrize(
    ("dtype", "outputs", "first", "taken"),
    [
        (torch.bfloat16, 576, 0, True),
        (torch.bfloat16, 576, 576, True),
        (torch.bfloat16, 576, 4, False),
        (torch.float32, 576, 4, True),
        (torch.bfloat16, 100, 0, False),
        (torch.float32, 100, 100, True),
        (torch.float32, 65, 65, False),
    ],
)
def test_which_slices_of_several_layers_rows_it_takes(monkeypatch, linear_inputs, dtype, outputs, first, taken):
    """Loads are of 16 bytes: where a layer's outputs begin or end elsewhere, a device would fault."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    linear_limits._too_old.cache_clear()
    x, memory, *rest = linear_inputs(1, 1, 8, 3 * outputs, 2, 1, dtype)
    part = memory[:, first : first + outputs]
    reason = backends.limits("masked_linear", "cuda")(*map(_OnGpu, (x, part, *rest)))
    linear_limits._too_old.cache_clear()
    assert (reason is None) == taken, reason
