"""`memory_update` against float64 numpy."""

import numpy as np
import pytest
import torch

from memoir_fast.ops import memory_update

OP = "memory_update"

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# D, O, k, n
SIZES = [(1, 1, 1, 1), (63, 65, 20, 3), (65, 63, 65, 33), (100, 1, 7, 100), (1000, 257, 286, 11), (4097, 33, 1001, 64)]


def random_inputs(width, outputs, k, tokens, dtype=torch.float32, device="cpu", dual=None):
    columns = torch.randperm(width)[:k].sort().values.int()
    memory = torch.randn(width, outputs).to(dtype)
    a, c = torch.randn(tokens, k).to(dual or dtype), torch.randn(tokens, outputs).to(dual or dtype)
    return tuple(value.to(device) for value in (memory, columns, a, c))


def as_numpy(tensor):
    return tensor.double().cpu().numpy()


def assert_matches_oracle(op, memory, columns, a, c):
    active, before = columns.cpu().long().numpy(), memory.clone()
    exact, size = as_numpy(memory), np.abs(as_numpy(memory))
    exact[active] += as_numpy(a).T @ as_numpy(c)
    size[active] += np.abs(as_numpy(a)).T @ np.abs(as_numpy(c))
    assert op(memory, columns, a, c) is memory
    wide = torch.float64 if torch.float64 in (memory.dtype, a.dtype) else torch.float32
    bound = torch.finfo(memory.dtype).eps * np.abs(exact) + (len(a) + 2) * torch.finfo(wide).eps * size
    error = np.abs(as_numpy(memory) - exact)
    print(f"{memory.dtype}: largest error {error.max(initial=0):.3g}")
    assert (error <= bound).all()
    idle = np.setdiff1d(np.arange(len(memory)), active)
    assert torch.equal(memory.cpu()[idle], before.cpu()[idle])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_random(op, backend, sizes, dtype):
    assert_matches_oracle(op, *random_inputs(*sizes, dtype, backend.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dual", DTYPES, ids=str)
def test_dtypes_may_differ(op, backend, dtype, dual):
    assert_matches_oracle(op, *random_inputs(65, 33, 20, 7, dtype, backend.device, dual))


def test_known_answer(op, backend):
    memory = torch.ones(3, 2, device=backend.device)
    columns = torch.tensor([0, 2], dtype=torch.int32, device=backend.device)
    a = torch.tensor([[2.0, 3.0], [1.0, 0.0]], device=backend.device)
    c = torch.tensor([[10.0, 0.0], [0.0, 1.0]], device=backend.device)
    assert op(memory, columns, a, c).tolist() == [[21.0, 2.0], [1.0, 1.0], [31.0, 1.0]]


def test_columns_in_any_order(op, backend):
    memory, columns, a, c = random_inputs(65, 33, 20, 7, device=backend.device)
    assert_matches_oracle(op, memory, columns.flip(0), a, c)


def test_other_rows_keep_every_bit(op, backend):
    memory, columns, a, c = random_inputs(65, 33, 20, 7, device=backend.device)
    idle = torch.ones(65, dtype=torch.bool, device=backend.device)
    idle[columns.long()] = False
    memory[idle] = float("nan")
    before = memory.clone()
    op(memory, columns, a, c)
    assert torch.equal(memory[idle].view(torch.int32), before[idle].view(torch.int32))
    assert memory[columns.long()].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_once(op, backend, dtype):
    if dtype == torch.bfloat16 and backend == ("triton", "cpu"):
        pytest.skip("Triton's interpreter truncates to bfloat16, a device rounds to nearest")
    a = torch.randint(-32, 33, (5, 20)).to(dtype).to(backend.device)
    c = torch.randint(-32, 33, (5, 33)).to(dtype).to(backend.device)
    memory = (torch.randint(-2000, 2000, (20, 33)) / 16).to(dtype).to(backend.device)
    product = a.cpu().double().T @ c.cpu().double()
    once = (memory.cpu().double() + product).to(dtype)
    assert not torch.equal(once, memory.cpu() + product.to(dtype))
    op(memory, torch.arange(20, dtype=torch.int32, device=backend.device), a, c)
    assert torch.equal(memory.cpu(), once)


@pytest.mark.parametrize(("outputs", "k", "tokens"), [(0, 3, 2), (5, 0, 2), (5, 3, 0)])
def test_empty(op, backend, outputs, k, tokens):
    memory, columns, a, c = random_inputs(9, outputs, k, tokens, device=backend.device)
    before = memory.clone()
    assert torch.equal(op(memory, columns, a, c), before)


def test_strided_inputs(op, backend):
    memory, columns, a, c = random_inputs(65, 66, 20, 14, device=backend.device)
    wide = memory.clone()
    inputs = wide[:, ::2], columns[::2], a.T.contiguous().T[::2, ::2], c[::2, ::2]
    assert not any(value.is_contiguous() for value in inputs)
    assert_matches_oracle(op, *inputs)
    assert torch.equal(wide[:, 1::2], memory[:, 1::2])


def test_same_call_same_bits(op, backend):
    memory, columns, a, c = random_inputs(1000, 129, 286, 33, torch.bfloat16, backend.device)
    first = op(memory.clone(), columns, a, c)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first, op(memory.clone(), columns, a, c))
    finally:
        torch.set_num_threads(1)


FLOATS = "float16/bfloat16/float32/float64"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"memory": torch.zeros(8, 4).int()}, TypeError, f"memory must be {FLOATS} [D, O], got int32 [8, 4]"),
        ({"memory": torch.zeros(8)}, ValueError, f"memory must be {FLOATS} [D, O], got float32 [8]"),
        ({"columns": torch.arange(3)}, TypeError, "columns must be int32 [k], got int64 [3]"),
        ({"columns": torch.zeros(1, 3).int()}, ValueError, "columns must be int32 [k], got int32 [1, 3]"),
        (
            {"columns": torch.tensor([0, 1, 8]).int()},
            ValueError,
            "columns must lie in [0, 8), got values from 0 to 8",
        ),
        (
            {"columns": torch.tensor([-1, 0, 1]).int()},
            ValueError,
            "columns must lie in [0, 8), got values from -1 to 1",
        ),
        ({"a": torch.zeros(2, 3).int()}, TypeError, f"a must be {FLOATS} [n, 3], got int32 [2, 3]"),
        ({"a": torch.zeros(2, 4)}, ValueError, f"a must be {FLOATS} [n, 3], got float32 [2, 4]"),
        ({"c": torch.zeros(2, 4).double()}, TypeError, "c must be float32 [2, 4], got float64 [2, 4]"),
        ({"c": torch.zeros(3, 4)}, ValueError, "c must be float32 [2, 4], got float32 [3, 4]"),
        ({"c": torch.zeros(2, 5)}, ValueError, "c must be float32 [2, 4], got float32 [2, 5]"),
    ],
)
def test_errors_leave_the_memory_alone(change, error, message):
    arguments = {
        "memory": torch.ones(8, 4),
        "columns": torch.arange(3).int(),
        "a": torch.ones(2, 3),
        "c": torch.ones(2, 4),
    } | change
    before = arguments["memory"].clone()
    with pytest.raises(error) as caught:
        memory_update(**arguments)
    assert str(caught.value) == message
    assert torch.equal(arguments["memory"], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(opcheck, backend, dtype):
    opcheck(OP, *random_inputs(33, 9, 5, 7, dtype, backend.device))


def test_compiles_whole(backend, same_compiled):
    same_compiled(*random_inputs(33, 9, 5, 7, device=backend.device))
