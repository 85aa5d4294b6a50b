"""`ResidualMemory`: W_m, transposed."""

import pytest
import torch

from memoir_fast.modules import ResidualMemory


def _dense(memory, x, columns, route):
    """W_m as a dense matrix over masked inputs, as the method is written down."""
    y = torch.zeros(*x.shape[:2], memory.weight.shape[1], dtype=torch.float64)
    for row, edit in enumerate(route.tolist()):
        if edit >= 0:
            mask = torch.zeros(x.shape[2], dtype=torch.float64)
            mask[columns[edit].long()] = 1
            y[row] = (x[row].double() * mask) @ memory.weight.double()
    return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward_is_the_masked_dense_product(dtype):
    memory = ResidualMemory(40, 6, dtype)
    memory.weight.normal_()
    x = torch.randn(3, 5, 40).to(dtype)
    columns = torch.stack([torch.randperm(40)[:7].sort().values for _ in range(2)]).int()
    route = torch.tensor([1, -1, 0]).int()
    y = memory(x, columns, route)
    expected = _dense(memory, x, columns, route)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
    assert not y[1].any()
    base = torch.randn(3, 5, 6).to(dtype)
    kept = base.clone()
    assert memory.add_(base, x, columns, route) is base
    assert torch.equal(base[1], kept[1])
    torch.testing.assert_close(
        base.double(), kept.double() + expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps
    )


def test_it_starts_at_zero_and_update_writes_only_its_rows():
    memory = ResidualMemory(10, 3)
    assert not memory.weight.any()
    columns, a, c = torch.tensor([2, 7]).int(), torch.randn(4, 2), torch.randn(4, 3)
    assert memory.update(columns, a, c) is None
    torch.testing.assert_close(memory.weight[[2, 7]], a.T @ c)
    memory.weight[[2, 7]] = 0
    assert not memory.weight.any()


def test_gradients_reach_x_and_the_active_rows_alone():
    memory = ResidualMemory(10, 3, torch.float64)
    memory.weight.normal_()
    weight, x = memory.weight.clone().requires_grad_(), torch.randn(2, 4, 10, dtype=torch.float64, requires_grad=True)
    columns, route = torch.tensor([[1, 4]]).int(), torch.tensor([0, -1]).int()
    memory.weight = weight
    memory(x, columns, route).square().sum().backward()
    assert x.grad[0][:, [1, 4]].all() and not x.grad[1].any()
    assert weight.grad[[1, 4]].all()
    assert weight.grad.count_nonzero() == 6


def test_state_dict_dtype_moves_and_repr():
    memory, other = ResidualMemory(8, 3), ResidualMemory(8, 3)
    memory.weight.normal_()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.weight, memory.weight)
    assert other.bfloat16().weight.dtype == torch.bfloat16
    assert not list(memory.parameters())
    assert repr(other) == "ResidualMemory(width=8, outputs=3, dtype=bfloat16)"
