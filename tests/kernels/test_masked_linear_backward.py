"""The gradient of `masked_linear` by Triton, held against its float64 value."""

import pytest
import torch
from memoir_fast.kernels.masked_linear import masked_linear_backward

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _exact(grad, x, memory, columns, route) -> list[torch.Tensor]:
    """grad_x, its terms' absolute sum, grad_memory, its terms' absolute sum, in float64."""
    to_x, size_x = (torch.zeros_like(x, dtype=torch.float64) for _ in range(2))
    to_memory, size_memory = (torch.zeros_like(memory, dtype=torch.float64) for _ in range(2))
    for row, edit in enumerate(route.tolist()):
        if 0 <= edit < len(columns):
            width, own, first = x.shape[2], columns[edit].long(), int(columns[edit, 0])
            page = first - first % width if 0 <= first < len(memory) else 0
            active = own[(own >= page) & (own < page + width)]
            column = active - page
            dy, inputs, weights = grad[row].double(), x[row][:, column].double(), memory[active].double()
            to_x[row, :, column], size_x[row, :, column] = dy @ weights.T, dy.abs() @ weights.T.abs()
            to_memory[active] += inputs.T @ dy
            size_memory[active] += inputs.T.abs() @ dy.abs()
    return [to_x, size_x, to_memory, size_memory]


@pytest.mark.parametrize("seed", range(80))
def test_random_calls(draw, assert_product, seed):
    batch, tokens = draw.pick(0, 1, 2, 3), draw.pick(1, 2, 16, 17, 33, 70)
    width, outputs, edits = draw.size(1, 90), draw.pick(1, 17, 33, draw.size(1, 80)), draw.pick(1, 2, 4)
    k = draw.pick(1, width, draw.size(1, width))
    dtype = draw.pick(*DTYPES)
    grad, x = draw.normal(batch, tokens, outputs, dtype=dtype), draw.normal(batch, tokens, width, dtype=dtype)
    memory, columns = draw.normal(width, outputs, dtype=dtype), draw.columns(edits, k, width)
    route = draw.integers(-1, edits, batch)
    if draw.chance(0.4):
        page = draw.integers(0, 3, edits)
        columns, memory = columns + width * page[:, None].int(), memory.repeat(3, 1)
    if draw.chance(0.2):
        route = torch.where(draw.uniform(batch) < 0.4, route * 1000 + 100, route)
        columns = torch.where(draw.uniform(edits, k) < 0.2, columns - len(memory), columns)
    arguments = [draw.layout(tensor) for tensor in (grad, x, memory, columns, route)]
    need_x, need_memory = draw.pick((True, True), (True, True), (True, False), (False, True), (False, False))
    grad_x, grad_memory = masked_linear_backward(*arguments, need_x, need_memory)
    assert grad_x.dtype == grad_memory.dtype == dtype
    to_x, size_x, to_memory, size_memory = _exact(grad, x, memory, columns, route)
    if need_x:
        assert_product(grad_x, to_x, size_x, outputs)
    if need_memory:
        assert_product(grad_memory, to_memory, size_memory, batch * tokens)
    assert need_x or grad_x.shape == (0,)
    assert need_memory or grad_memory.shape == (0,)


def test_edits_that_share_columns_add_up_in_a_fixed_order(draw, assert_product):
    x, grad, memory = draw.normal(6, 5, 40), draw.normal(6, 5, 30), draw.normal(40, 30)
    columns = draw.columns(3, 30, 40)
    route = torch.tensor([2, 0, 2, -1, 1, 0], dtype=torch.int32, device=draw.device)
    first = masked_linear_backward(grad, x, memory, columns, route, True, True)
    *_, exact, magnitude = _exact(grad, x, memory, columns, route)
    assert_product(first[1], exact, magnitude, 30)
    second = masked_linear_backward(grad, x, memory, columns, route, True, True)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
