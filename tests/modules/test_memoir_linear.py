"""`MemoirLinear` alone, in a plain torch model that knows no transformer."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.memoir_linear import linear_shape, min_overlap
from memoir_fast.modules.routed import first_alike

WIDTH, OUT, K = 64, 6, 8


def _with_edits(x, base=None, dtype=torch.float32, tau=0.9, count=None):
    """A layer with a random memory, which has an edit for each of the first `count` sequences of x."""
    layer = MemoirLinear(base or nn.Linear(WIDTH, OUT), K, tau=tau).to(dtype)
    masks, columns = layer.hash(x.reshape(len(x), -1, WIDTH))
    layer.store.extend(masks[:count])
    layer.memory.weight.normal_()
    return layer


def _expected(layer, x, route):
    """Base output plus the dense product over each sequence's mask, in float64."""
    y = layer.base(x).double()
    for row, edit in enumerate(route):
        if edit >= 0:
            own = layer.store.columns[edit].long()
            y[row] += x[row][..., own].double() @ layer.memory.weight[own].double()
    return y


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (3,), (3, 2, 4)])
def test_matched_rows_get_their_edit_and_others_the_base_layer_bit_for_bit(shape, grad):
    x = torch.randn(*shape, WIDTH)
    layer = _with_edits(x, count=2)
    with torch.set_grad_enabled(grad):
        y, base = layer(x), layer.base(x)
    assert y.shape == (*shape, OUT) and y.requires_grad == grad
    torch.testing.assert_close(y.double(), _expected(layer, x, [0, 1, -1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(y[2], base[2]) and not torch.equal(y[0], base[0])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_input_that_is_not_contiguous(order, bias, grad):
    x = torch.empty([(3, 5, WIDTH)[axis] for axis in order]).normal_().permute(order)
    layer = _with_edits(x, nn.Linear(WIDTH, OUT, bias=bias), count=2)
    assert not x.is_contiguous() and x.shape == (3, 5, WIDTH)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x).double(), _expected(layer, x, [0, 1, -1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype, grad):
    x = torch.randn(3, 5, WIDTH).to(dtype)
    layer = _with_edits(x, dtype=dtype, count=2)
    assert layer.memory.weight.dtype == dtype and layer.mu.dtype == torch.float32
    with torch.set_grad_enabled(grad):
        y, base = layer(x), layer.base(x)
    size = 40 * torch.finfo(dtype).eps
    assert y.dtype == dtype and torch.equal(y[2], base[2])
    torch.testing.assert_close(y.double(), _expected(layer, x, [0, 1, -1]), rtol=size, atol=size)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast(given):
    """The input comes in float32, or in bfloat16 from the operation before; the memory is in float32."""
    x = torch.randn(3, 5, WIDTH).to(given)
    layer = _with_edits(x, count=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, base = layer(x), layer.base(x)
        expected = _expected(layer, x, [0, 1, -1])
    assert y.dtype == torch.bfloat16 and torch.equal(y[2], base[2])
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)


class _Quantised(nn.Module):
    """A base layer whose weight is bytes; it computes in its input's dtype."""

    in_features, out_features, bias = WIDTH, OUT, None

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(0, 255, (OUT, WIDTH), dtype=torch.uint8))

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) / 255).T


@pytest.mark.parametrize("grad", [False, True])
def test_a_quantised_base(grad):
    x = torch.randn(3, 5, WIDTH).bfloat16()
    layer = MemoirLinear(_Quantised(), K, tau=0.9)
    layer.store.extend(layer.hash(x)[0][:2])
    layer.memory.weight.normal_()
    assert layer.memory.weight.dtype == torch.float32
    with torch.set_grad_enabled(grad):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y[2], layer.base(x)[2])
    torch.testing.assert_close(y.double(), _expected(layer, x, [0, 1, -1]), rtol=0.02, atol=0.02)


def test_conv1d_of_transformers():
    from transformers.pytorch_utils import Conv1D

    base, x = Conv1D(OUT, WIDTH), torch.randn(3, 5, WIDTH)
    base.bias.data.normal_()
    assert linear_shape(base) == (WIDTH, OUT)
    layer = _with_edits(x, base, count=2)
    assert (layer.in_features, layer.out_features) == (WIDTH, OUT)
    assert layer.weight is base.weight and layer.bias is base.bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), _expected(layer, x, [0, 1, -1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (0,), (2, 0)])
@pytest.mark.parametrize("edits", [0, 1])
def test_empty_batches(shape, edits):
    layer = _with_edits(torch.randn(1, 5, WIDTH), count=edits)
    with torch.no_grad():
        assert layer(torch.randn(*shape, WIDTH)).shape == (*shape, OUT)


def test_input_without_sequences_is_refused():
    with pytest.raises(ValueError, match=r"x must be \[B, S, D\] or \[B, D\], got \[64\]"):
        MemoirLinear(nn.Linear(WIDTH, OUT), K)(torch.randn(WIDTH))
    with pytest.raises(TypeError, match=r"must be a linear layer \(nn.Linear or Conv1D\), got LayerNorm"):
        MemoirLinear(nn.LayerNorm(WIDTH), K)


def test_a_row_is_routed_independently_of_its_neighbours():
    x = torch.randn(4, 5, WIDTH)
    layer = _with_edits(x, count=3, tau=0.5)
    together = layer.match(x)[0].tolist()
    assert together == [int(layer.match(row[None])[0]) for row in x]
    assert together[:3] == [0, 1, 2]
    marked = torch.ones(4, 5, dtype=torch.bool)
    marked[:, 3:] = False
    changed = x.clone()
    changed[:, 3:] = 9.0
    assert torch.equal(layer.match(changed, marked)[1], layer.match(x, marked)[1])


def test_gradients_reach_input_and_base_but_no_gradient_changes_the_memory():
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    layer = _with_edits(x, dtype=torch.float64, count=2)
    x.requires_grad_()
    layer(x).square().sum().backward()
    memory = torch.zeros(3, WIDTH, OUT, dtype=torch.float64)
    for row in range(2):
        own = layer.store.columns[row].long()
        memory[row, own] = layer.memory.weight[own]
    plain = x.detach().clone().requires_grad_()
    (plain @ (layer.weight.T + memory) + layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)
    assert layer.base.weight.grad is not None
    assert {name for name, _ in layer.named_parameters()} == {"base.weight", "base.bias"}


def test_an_empty_store_gives_the_base_output():
    layer, x = MemoirLinear(nn.Linear(WIDTH, OUT), K, tau=0.01), torch.randn(2, 3, WIDTH)
    layer.memory.weight.normal_()
    assert torch.equal(layer(x), layer.base(x))


def test_a_deleted_edit_gives_the_base_output():
    x = torch.randn(2, 3, WIDTH)
    layer = _with_edits(x)
    layer.store.delete(0)
    assert torch.equal(layer(x)[0], layer.base(x)[0]) and not torch.equal(layer(x)[1], layer.base(x)[1])


def test_activations_that_are_not_finite_follow_no_edit():
    x = torch.randn(2, 3, WIDTH)
    layer = _with_edits(x)
    x[0, 1, 2] = float("nan")
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y[0, [0, 2]], layer.base(x)[0, [0, 2]]) and not torch.equal(y[1], layer.base(x)[1])


@pytest.mark.parametrize(
    ("tau", "k", "bits"),
    [(0.9, 10, 9), (0.7, 10, 7), (0.1, 30, 3), (0.3, 10, 3), (0.55, 100, 55), (0.29, 100, 29), (0.91, 10, 10)]
    + [(1.0, 7, 7), (1, 7, 7), (0.5, 7, 4), (1e-9, 7, 1), (0.5, 4096, 2048), (0.501, 4096, 2053), (1 / 3, 3, 1)],
)
def test_min_overlap_is_the_least_number_of_bits_that_reaches_tau(tau, k, bits):
    assert min_overlap(tau, k) == bits


@pytest.mark.parametrize("tau", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_tau_outside_of_its_range_is_refused_and_changes_nothing(tau):
    layer = MemoirLinear(nn.Linear(WIDTH, OUT), K, tau=0.75)
    with pytest.raises(ValueError, match=rf"tau must lie in \(0, 1\], got {tau}"):
        layer.tau = tau
    assert layer.tau == 0.75 and layer.min_overlap == 6


def test_tau_decides():
    x = torch.randn(1, 3, WIDTH)
    layer = _with_edits(x)
    mask = layer.store.masks[:1].clone()
    for column in layer.store.columns[0, :3].tolist():
        mask[0, column // 32] &= ~(1 << (column % 32))  # five of eight bits stay
    layer.store.masks[:1] = mask
    for tau, edit in ((0.6, 0), (0.625, 0), (0.63, -1)):
        layer.tau = tau
        assert [part.tolist() for part in layer.match(x)] == [[edit], [5]]


def test_state_dict_has_the_plain_layers_names_and_loads_both_ways():
    x = torch.randn(3, 5, WIDTH)
    plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT))
    model = copy.deepcopy(plain)
    model[1] = _with_edits(x, model[1])
    state = model.state_dict()
    missing, unexpected = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)).load_state_dict(
        state, strict=False
    )
    assert not missing and all(name.split(".")[1] in ("tophash", "store", "memory") for name in unexpected)
    assert {name: state[name] for name in plain.state_dict()}.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())

    other = nn.Sequential(nn.Linear(WIDTH, WIDTH), MemoirLinear(nn.Linear(WIDTH, OUT), K, tau=0.9, seed=99))
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other(x), model(x)) and torch.equal(other[1](x), model[1](x))
    assert other[1].store.live == [0, 1, 2]
    missing, _ = other.load_state_dict(plain.state_dict(), strict=False)
    assert "1.weight" not in missing and "1.base.weight" not in missing


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), "torch"])
def test_copies(copied):
    x = torch.randn(3, 5, WIDTH)
    layer = _with_edits(x, count=2)
    if copied == "torch":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copied(layer)
    assert torch.equal(other(x), layer(x)) and (other.tau, other.min_overlap) == (layer.tau, layer.min_overlap)
    other.store.delete(0)
    other.memory.weight.zero_()
    assert layer.store.live == [0, 1] and layer.memory.weight.any()


@pytest.mark.parametrize("grad", [False, True])
def test_it_compiles_as_one_graph(grad):
    x = torch.randn(3, 5, WIDTH)
    layer = _with_edits(x, count=2)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(grad):
        assert torch.equal(compiled(x), layer(x))


def test_mode_follows_the_base_layer():
    assert MemoirLinear(nn.Linear(WIDTH, OUT), K).training
    assert not any(module.training for module in MemoirLinear(nn.Linear(WIDTH, OUT).eval(), K).modules())


@pytest.mark.parametrize(
    ("edits", "first"), [([], []), ([-1, -1], [-1, -1]), ([4, 2, -1, 4, 2, 0], [0, 1, -1, 0, 1, 5])]
)
def test_sequences_of_one_edit_read_the_rows_of_the_first(edits, first):
    assert first_alike(torch.tensor(edits, dtype=torch.int32)).tolist() == first


def test_a_draft_takes_the_place_of_the_memory_and_is_gone_after_an_exception():
    x = torch.randn(2, 3, WIDTH)
    layer = _with_edits(x)
    with layer.replacing_output(lambda given, y: y + given.sum()):
        assert torch.equal(layer(x), layer.base(x) + x.sum())
    with pytest.raises(RuntimeError, match="stop"), layer.replacing_output(lambda given, y: y):
        assert torch.equal(layer(x), layer.base(x))
        raise RuntimeError("stop")
    assert not torch.equal(layer(x), layer.base(x))


def test_extra_repr():
    text = repr(MemoirLinear(nn.Linear(WIDTH, OUT), K, tau=0.75, seed=2))
    assert "MemoirLinear(\n  tau=0.75" in text and "TopHash(width=64, k=8, seed=2)" in text
