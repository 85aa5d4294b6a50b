"""A MemoirLinear by itself under torch.compile; whole models are in tests/hf/test_compiled.py."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from memoir_fast.errors import MemoirError
from memoir_fast.modules import MemoirLinear

WIDTH, OUT, K = 24, 5, 6


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _layer(x, dtype=torch.float32):
    """A layer whose store holds the masks of the rows of x, all but the last."""
    layer = MemoirLinear(nn.Linear(WIDTH, OUT, dtype=dtype), K, tau=0.9)
    layer.store.extend(layer.hash(x)[0][:-1])
    layer.memory.weight.normal_()
    return layer


@pytest.mark.parametrize("shape", [(3, 4, WIDTH), (3, WIDTH), (3, 2, 2, WIDTH)])
def test_it_answers_as_any_other_pass_and_is_compiled_once(shape):
    x = torch.randn(shape)
    layer = _layer(x.reshape(3, -1, WIDTH))
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(run(x), layer(x)) and not torch.equal(layer(x), layer.base(x))
        with torch._dynamo.config.patch(error_on_recompile=True):
            layer.store.extend(layer.hash(torch.randn(70, 4, WIDTH))[0])  # buffers grow, and move
            layer.memory.open()
            layer.store.delete(0)
            assert torch.equal(run(x), layer(x)) and torch.equal(run(x)[0], layer.base(x)[0])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_inductor_compiles_it_in_place():
    x = torch.randn(3, 4, WIDTH)
    layer = _layer(x)
    with torch.no_grad():
        found = torch.compile(layer, fullgraph=True)(x)
        torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype):
    x = torch.randn(3, 4, WIDTH, dtype=dtype, requires_grad=True)
    layer = _layer(x.detach(), dtype)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for sign in (1, -1):  # rows that follow edits, and rows that follow none
        expected, found = layer(x * sign), run(x * sign)
        torch.testing.assert_close(found, expected)
        weights = [x, layer.base.weight]
        gradients = (torch.autograd.grad(output.float().square().sum(), weights) for output in (found, expected))
        torch.testing.assert_close(*gradients)


def test_a_copy_and_the_original_are_compiled_each_with_its_own_memory():
    x = torch.randn(2, 4, WIDTH)
    layer = _layer(x)
    other = copy.deepcopy(layer)
    other.memory.weight.zero_()
    with torch.no_grad():
        for one in (layer, other):
            assert torch.equal(torch.compile(one, fullgraph=True, backend="eager")(x), one(x))
    assert not torch.equal(layer(x), other(x))


def test_a_draft_reaches_a_compiled_pass_and_is_never_passed_over():
    x = torch.randn(2, 4, WIDTH)
    layer = _layer(x)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with layer.replacing_output(lambda given, y: y + 1):
        with torch.no_grad():
            assert torch.equal(run(x), layer.base(x) + 1)
        with pytest.raises(MemoirError, match="cannot be learned by passes through a compiled part"):
            run(x)


def test_no_cuda_graph_may_hold_it():
    for name in ("follow_", "residual", "residual_backward"):
        operation = getattr(torch.ops.memoir_fast, name).default
        assert torch.Tag.cudagraph_unsafe in operation.tags
