"""The Triton kernel of `memory_update` writes the reference's rows and nothing else."""

import pytest
import torch
from memoir_fast.kernels.memory_update import memory_update

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _exact(memory, columns, a, c) -> tuple[torch.Tensor, torch.Tensor]:
    """memory[columns] += a^T c in float64, and the sum of the terms' absolute values; columns outside are left out."""
    inside = (columns >= 0) & (columns < len(memory))
    active, a = columns[inside].long(), a[:, inside].double()
    value, magnitude = memory.double().clone(), memory.double().abs()
    value[active] += a.T @ c.double()
    magnitude[active] += a.T.abs() @ c.double().abs()
    return value, magnitude


@pytest.mark.parametrize("seed", range(80))
def test_random_updates(draw, assert_product, seed):
    width, outputs, tokens = draw.size(1, 80), draw.pick(0, 1, 17, draw.size(1, 150)), draw.pick(0, 1, draw.size(1, 70))
    k = draw.pick(0, 1, width, draw.size(1, width))
    dtype = draw.pick(*DTYPES)
    memory = draw.normal(width, outputs, dtype=draw.pick(*DTYPES))
    columns = draw.permutation(width)[:k]
    if draw.chance(0.3):
        columns = torch.where(columns % 3 == 0, columns + width, columns).where(columns % 5 > 0, -1 - columns)
    a, c = draw.normal(tokens, k, dtype=dtype), draw.normal(tokens, outputs, dtype=dtype)
    exact, magnitude = _exact(memory, columns, a, c)
    target = draw.layout(memory.clone())
    outside = target._base.clone() if target._base is not None else None
    memory_update(target, draw.layout(columns), draw.layout(a), draw.layout(c))
    assert_product(target, exact, magnitude, tokens)
    untouched = torch.ones(width, dtype=torch.bool, device=draw.device)
    untouched[columns[(columns >= 0) & (columns < width)].long()] = False
    assert torch.equal(target[untouched], memory[untouched])
    if outside is not None:
        target.copy_(memory)
        assert torch.equal(target._base.nan_to_num(777.0), outside.nan_to_num(777.0))


def test_a_real_size(draw, assert_product):
    memory, columns = draw.normal(1536, 576), draw.permutation(1536)[:440]
    a, c = draw.normal(40, 440), draw.normal(40, 576)
    exact, magnitude = _exact(memory, columns, a, c)
    twin = memory.clone()
    memory_update(memory, columns, a, c)
    assert_product(memory, exact, magnitude, 40)
    memory_update(twin, columns, a, c)
    assert torch.equal(memory, twin)
