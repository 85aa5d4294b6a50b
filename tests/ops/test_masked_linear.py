"""`masked_linear`, its in-place form and its gradient against float64 numpy."""

import math

import numpy as np
import pytest
import torch

from memoir_fast import backends, ops
from memoir_fast.ops import masked_linear, masked_linear_add_

OP = "masked_linear"

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# B, S, D, O, k, C
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 63, 65, 20, 3),
    (3, 5, 65, 63, 65, 2),
    (2, 33, 100, 1, 7, 5),
    (4, 17, 129, 100, 37, 4),
    (1, 1, 1000, 257, 286, 2),
    (2, 2, 4097, 33, 1001, 2),
]


def random_inputs(batch, tokens, width, outputs, k, edits, dtype=torch.float32, device="cpu"):
    columns = torch.stack([torch.randperm(width)[:k].sort().values for _ in range(edits)]).int()
    route = torch.randint(-1, edits, (batch,)).int()
    route[0] = edits - 1
    x, memory = torch.randn(batch, tokens, width).to(dtype), torch.randn(width, outputs).to(dtype)
    return tuple(value.to(device) for value in (x, memory, columns, route))


def as_numpy(tensor):
    return tensor.detach().double().cpu().numpy()


def oracle(x, memory, columns, route):
    """The sum in float64, and the sum of magnitudes that bounds its rounding in any order."""
    x, memory = as_numpy(x), as_numpy(memory)
    y, size = np.zeros((*x.shape[:2], memory.shape[1])), np.zeros((*x.shape[:2], memory.shape[1]))
    for row, edit in enumerate(route.tolist()):
        if edit >= 0:
            active = columns[edit].tolist()
            inputs = x[row][:, [one % x.shape[2] for one in active]]
            y[row] = inputs @ memory[active]
            size[row] = np.abs(inputs) @ np.abs(memory[active])
    return y, size


def assert_within_rounding(value, exact, size, terms):
    """One rounding to the dtype, and float32 (float64) accumulation of `terms` products in any order."""
    dtype = value.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = torch.finfo(dtype).eps * np.abs(exact) + (terms + 1) * torch.finfo(wide).eps * size
    error = np.abs(as_numpy(value) - exact)
    worst = (error - bound).max(initial=-math.inf)
    print(f"{dtype}: largest error {error.max(initial=0):.3g}")
    assert np.isfinite(error).all() and worst <= torch.finfo(dtype).tiny, f"{worst} over the bound"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_random(op, backend, sizes, dtype):
    inputs = random_inputs(*sizes, dtype, backend.device)
    y = op(*inputs)
    assert y.dtype == dtype and y.is_contiguous()
    exact, size = oracle(*inputs)
    assert y.shape == exact.shape
    assert_within_rounding(y, exact, size, sizes[4])
    assert not y[inputs[3] < 0].any()


def test_known_answer(op, backend):
    x = torch.tensor([[[1.0, 10.0, 100.0]]] * 3, device=backend.device)
    memory = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], device=backend.device)
    columns = torch.tensor([[0, 2], [1, 2]], dtype=torch.int32, device=backend.device)
    route = torch.tensor([1, -1, 0], dtype=torch.int32, device=backend.device)
    assert op(x, memory, columns, route)[:, 0].tolist() == [[320.0, -320.0], [0.0, 0.0], [301.0, -301.0]]


def test_unrouted_rows_are_zero_whatever_they_hold(op, backend):
    x, memory, columns, route = random_inputs(3, 5, 65, 33, 20, 2, device=backend.device)
    route[1:] = -1
    x[1] = float("nan")
    x[2] = float("inf")
    assert not op(x, memory, columns, route)[1:].any()


def test_only_active_columns_are_read(op, backend):
    x, memory, columns, route = random_inputs(2, 5, 65, 33, 20, 1, device=backend.device)
    route[:] = 0
    expected = op(x, memory, columns, route)
    idle = torch.ones(65, dtype=torch.bool, device=backend.device)
    idle[columns[0].long()] = False
    x[..., idle] = float("nan")
    memory[idle] = float("nan")
    assert torch.equal(op(x, memory, columns, route), expected)


def test_columns_of_other_edits_may_be_unwritten(op, backend):
    x, memory, columns, route = random_inputs(2, 3, 65, 33, 20, 2, device=backend.device)
    columns[0] = -1
    route[:] = 1
    exact, size = oracle(x, memory, columns, route)
    assert_within_rounding(op(x, memory, columns, route), exact, size, 20)


@pytest.mark.parametrize("change", [{"batch": 0}, {"tokens": 0}, {"outputs": 0}, {"edits": 0}], ids=str)
def test_empty(op, backend, change):
    sizes = {"batch": 2, "tokens": 3, "outputs": 5, "edits": 1} | change
    x = torch.randn(sizes["batch"], sizes["tokens"], 9, device=backend.device)
    memory = torch.randn(9, sizes["outputs"], device=backend.device)
    columns = torch.arange(4, dtype=torch.int32, device=backend.device).repeat(sizes["edits"], 1)
    route = torch.full((sizes["batch"],), sizes["edits"] - 1, dtype=torch.int32, device=backend.device)
    y = op(x, memory, columns, route)
    assert y.shape == (sizes["batch"], sizes["tokens"], sizes["outputs"])
    if sizes["edits"] == 0:
        assert not y.any()


def test_strided_inputs(op, backend):
    x, memory, columns, route = random_inputs(6, 8, 130, 66, 40, 6, device=backend.device)
    inputs = x[::2, 1::2], memory.T.contiguous().T[:, ::2], columns[::2], route.clamp(max=2)[::2]
    assert not any(value.is_contiguous() for value in inputs)
    exact, size = oracle(*inputs)
    assert_within_rounding(op(*inputs), exact, size, 40)
    narrow = (x[..., ::2], memory[::2], columns[:, :20] // 4, route)
    exact, size = oracle(*narrow)
    assert_within_rounding(op(*narrow), exact, size, 20)


def test_same_call_same_bits(op, backend):
    inputs = random_inputs(4, 9, 1000, 129, 286, 3, torch.bfloat16, backend.device)
    first = op(*inputs)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first, op(*inputs))
    finally:
        torch.set_num_threads(1)


def bits(tensor):
    return tensor.flatten().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_add(proven_op, backend, sizes, dtype):
    inputs = random_inputs(*sizes, dtype, backend.device)
    base = torch.randn(sizes[0], sizes[1], sizes[3]).to(dtype).to(backend.device)
    exact, size = oracle(*inputs)
    exact, size = exact + as_numpy(base), size + np.abs(as_numpy(base))
    changed = base.clone()
    assert proven_op("masked_linear_add_")(changed, *inputs) is changed
    assert_within_rounding(changed, exact, size, sizes[4])
    assert torch.equal(bits(changed[inputs[3] < 0]), bits(base[inputs[3] < 0]))


def test_add_keeps_every_bit_of_unrouted_rows(proven_op, backend):
    x, memory, columns, route = random_inputs(3, 4, 65, 33, 20, 2, device=backend.device)
    route[1:] = -1
    base = torch.randint(-(2**31), 2**31, (3, 4, 33)).int().to(backend.device).view(torch.float32)
    base[1], base[2] = -0.0, base[2].abs()
    before = base.clone()
    proven_op("masked_linear_add_")(base, x, memory, columns, route)
    assert torch.equal(bits(base[1:]), bits(before[1:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_add_rounds_once(proven_op, backend, dtype):
    if dtype == torch.bfloat16 and backend == ("triton", "cpu"):
        pytest.skip("Triton's interpreter truncates to bfloat16, a device rounds to nearest")
    x = torch.randint(-32, 33, (2, 3, 64)).to(dtype).to(backend.device)
    memory = torch.randint(-32, 33, (64, 33)).to(dtype).to(backend.device)
    base = (torch.randint(-2000, 2000, (2, 3, 33)) / 16).to(dtype).to(backend.device)
    columns = torch.arange(0, 64, 2, dtype=torch.int32, device=backend.device)[None]
    route = torch.zeros(2, dtype=torch.int32, device=backend.device)
    product, _ = oracle(x, memory, columns, route)  # every sum here is exact in float32
    once = (torch.from_numpy(product) + base.cpu().double()).to(dtype)
    twice = torch.from_numpy(product).to(dtype) + base.cpu()
    assert not torch.equal(once, twice)
    proven_op("masked_linear_add_")(base, x, memory, columns, route)
    assert torch.equal(base.cpu(), once)


def test_add_to_a_view(proven_op, backend):
    x, memory, columns, route = random_inputs(2, 4, 65, 33, 20, 2, device=backend.device)
    wide = torch.zeros(2, 4, 66, device=backend.device)
    wide[..., 1::2] = 7
    proven_op("masked_linear_add_")(wide[..., ::2], x, memory, columns, route)
    exact, size = oracle(x, memory, columns, route)
    assert_within_rounding(wide[..., ::2], exact, size, 20)
    assert (wide[..., 1::2] == 7).all()


def dense(x, memory, columns, route):
    """The same function as a product with a masked input, which autograd knows."""
    mask = torch.zeros(x.shape[0], x.shape[2], dtype=x.dtype, device=x.device)
    for row, edit in enumerate(route.tolist()):
        if edit >= 0:
            mask[row, columns[edit].long()] = 1
    return (x * mask[:, None]) @ memory


@pytest.fixture
def differentiable(backend):
    """A backend without a kernel for the gradient leaves it to the reference, as `auto` does."""
    with backends.use(f"{backend.name},reference"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradient(op, backend, differentiable, sizes, dtype):
    x, memory, columns, route = random_inputs(*sizes, dtype, backend.device)
    grad = torch.randn(sizes[0], sizes[1], sizes[3]).to(dtype).to(backend.device)
    leaves = [value.clone().requires_grad_() for value in (x, memory)]
    op(*leaves, columns, route).backward(grad)
    exact = [value.double().clone().requires_grad_() for value in (x, memory)]
    dense(*exact, columns, route).backward(grad.double())
    size = [value.double().abs().requires_grad_() for value in (x, memory)]
    dense(*size, columns, route).backward(grad.double().abs())
    for got, value, magnitude in zip(leaves, exact, size, strict=True):
        assert got.grad.dtype == dtype and got.grad.shape == got.shape
        terms = sizes[0] * sizes[1] * sizes[3]
        assert_within_rounding(got.grad, as_numpy(value.grad), as_numpy(magnitude.grad), terms)
    idle = torch.ones(sizes[2], dtype=torch.bool)
    for edit in set(route.tolist()) - {-1}:
        idle[columns[edit].cpu().long()] = False
    assert not leaves[1].grad[idle.to(backend.device)].any()


@pytest.mark.parametrize("which", ["x", "memory", "both"])
def test_gradcheck(backend, differentiable, poison, which):
    x, memory, columns, route = random_inputs(3, 2, 9, 4, 5, 2, torch.float64, backend.device)
    route[1] = -1
    x.requires_grad_(which in ("x", "both"))
    memory.requires_grad_(which in ("memory", "both"))
    assert torch.autograd.gradcheck(lambda x, memory: masked_linear(x, memory, columns, route), (x, memory))


@pytest.mark.op("masked_linear_backward")
def test_backward_is_asked_for_what_is_needed_only(backend, poison):
    x, memory, columns, route = random_inputs(2, 3, 65, 33, 20, 2, device=backend.device)
    grad = torch.randn(2, 3, 33, device=backend.device)
    backward = torch.ops.memoir_fast.masked_linear_backward.default
    both = backward(grad, x, memory, columns, route, True, True)
    only_x = backward(grad, x, memory, columns, route, True, False)
    only_memory = backward(grad, x, memory, columns, route, False, True)
    assert backends.last_used()["masked_linear_backward"] == backend.name
    assert torch.equal(only_x[0], both[0]) and only_x[1].numel() == 0
    assert torch.equal(only_memory[1], both[1]) and only_memory[0].numel() == 0


FLOATS = "float16/bfloat16/float32/float64"


def route_of(*edits):
    return torch.tensor(edits).int()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 8).int()}, TypeError, f"x must be {FLOATS} [B, S, D], got int32 [2, 3, 8]"),
        ({"x": torch.zeros(2, 8)}, ValueError, f"x must be {FLOATS} [B, S, D], got float32 [2, 8]"),
        ({"memory": torch.zeros(8, 4).half()}, TypeError, "memory must be float32 [R, O], got float16 [8, 4]"),
        ({"memory": torch.zeros(4, 8)}, ValueError, "memory must be whole pages of D = 8 rows, got float32 [4, 8]"),
        ({"columns": torch.zeros(2, 3)}, TypeError, "columns must be int32 [C, k], got float32 [2, 3]"),
        ({"columns": torch.zeros(3).int()}, ValueError, "columns must be int32 [C, k], got int32 [3]"),
        (
            {"columns": torch.zeros(2, 9).int()},
            ValueError,
            "columns must be int32 [C, k] with 1 <= k <= D = 8, got [2, 9]",
        ),
        (
            {"columns": torch.zeros(2, 0).int()},
            ValueError,
            "columns must be int32 [C, k] with 1 <= k <= D = 8, got [2, 0]",
        ),
        (
            {"columns": torch.tensor([[0, 8], [0, 1]]).int()},
            ValueError,
            "columns must lie in [0, 8), got values from 0 to 8",
        ),
        ({"memory": torch.zeros(0, 4)}, ValueError, "memory must be whole pages of D = 8 rows, got float32 [0, 4]"),
        (
            {"memory": torch.zeros(16, 4), "columns": torch.tensor([[0, 1], [7, 8]]).int()},
            ValueError,
            "columns of edit 1, all on one page, must lie in [0, 8), got values from 7 to 8",
        ),
        ({"route": torch.zeros(2)}, TypeError, "route must be int32 [2], got float32 [2]"),
        ({"route": route_of(0, 0, 0)}, ValueError, "route must be int32 [2], got int32 [3]"),
        ({"route": route_of(0, 2)}, ValueError, "route must lie in [-1, 2), got values from 0 to 2"),
        ({"route": route_of(-2, 0)}, ValueError, "route must lie in [-1, 2), got values from -2 to 0"),
    ],
)
@pytest.mark.parametrize("name", ["masked_linear", "masked_linear_add_"])
def test_errors(name, change, error, message):
    arguments = {
        "x": torch.zeros(2, 3, 8),
        "memory": torch.zeros(8, 4),
        "columns": torch.tensor([[0, 1], [2, 3]]).int(),
        "route": route_of(0, 1),
    }
    if name == "masked_linear_add_":
        arguments["base"] = torch.zeros(2, 3, 4)
    with pytest.raises(error) as caught:
        getattr(ops, name)(**(arguments | change))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        (torch.zeros(2, 3, 4).half(), TypeError, "base must be float32 [2, 3, 4], got float16 [2, 3, 4]"),
        (torch.zeros(2, 3, 5), ValueError, "base must be float32 [2, 3, 4], got float32 [2, 3, 5]"),
        (torch.zeros(1, 3, 4), ValueError, "base must be float32 [2, 3, 4], got float32 [1, 3, 4]"),
    ],
)
def test_errors_of_base(base, error, message):
    with pytest.raises(error) as caught:
        masked_linear_add_(base, torch.zeros(2, 3, 8), torch.zeros(8, 4), torch.zeros(1, 1).int(), route_of(0, 0))
    assert str(caught.value) == message


@pytest.mark.gpu
def test_route_outside_counts_as_none_on_a_device():
    x, memory, columns, route = random_inputs(3, 2, 65, 33, 20, 2, device="cuda")
    route[1], route[2] = 2, -7
    assert not masked_linear(x, memory, columns, route)[1:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(opcheck, backend, dtype):
    x, memory, columns, route = random_inputs(3, 2, 33, 9, 5, 2, dtype, backend.device)
    opcheck(OP, x, memory, columns, route)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_with_gradients(opcheck, backend, differentiable, dtype):
    x, memory, columns, route = random_inputs(3, 2, 33, 9, 5, 2, dtype, backend.device)
    opcheck(OP, x.requires_grad_(), memory.requires_grad_(), columns, route)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_add(opcheck, backend, dtype):
    inputs = random_inputs(3, 2, 33, 9, 5, 2, dtype, backend.device)
    opcheck("masked_linear_add_", torch.zeros(3, 2, 9, dtype=dtype, device=backend.device), *inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.op("masked_linear_backward")
def test_opcheck_backward(opcheck, backend, dtype, needs):
    inputs = random_inputs(3, 2, 33, 9, 5, 2, dtype, backend.device)
    opcheck("masked_linear_backward", torch.randn(3, 2, 9).to(dtype).to(backend.device), *inputs, *needs)


def test_compiles_whole(backend, same_compiled):
    same_compiled(*random_inputs(3, 2, 33, 9, 5, 2, device=backend.device))


def test_add_compiles_whole(backend):
    inputs = random_inputs(3, 2, 33, 9, 5, 2, device=backend.device)
    base = torch.randn(3, 2, 9, device=backend.device)
    expected = masked_linear_add_(base.clone(), *inputs)
    torch.compiler.reset()
    compiled = torch.compile(masked_linear_add_, fullgraph=True, backend="aot_eager", dynamic=False)
    assert torch.equal(compiled(base, *inputs), expected)
    assert torch.equal(base, expected)


def test_gradient_compiles_whole(backend, differentiable):
    x, memory, columns, route = random_inputs(3, 2, 33, 9, 5, 2, device=backend.device)
    grads = []
    torch.compiler.reset()
    for function in (masked_linear, torch.compile(masked_linear, fullgraph=True, backend="aot_eager", dynamic=False)):
        leaves = [value.clone().requires_grad_() for value in (x, memory)]
        function(*leaves, columns, route).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    # index_add_ of the reference adds in an order of its own at every call on CUDA
    close = 1e-5 if backend.device == "cuda" and backend.name == "reference" else 0
    torch.testing.assert_close(*grads, rtol=close, atol=close)
