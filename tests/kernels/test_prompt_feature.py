"""The Triton kernel of `prompt_feature` gives the reference's bits: the order of its sum is part of the op."""

import pytest
import torch
from memoir_fast.kernels.prompt_feature import prompt_feature

from memoir_fast.reference import prompt_feature as reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.nan_to_num(12345.0), expected.nan_to_num(12345.0)) and torch.equal(
        actual.isnan(), expected.isnan()
    )


@pytest.mark.parametrize("seed", range(80))
def test_random_prompts(draw, seed):
    batch, width = draw.pick(0, 1, 1, 1, 2), draw.pick(1, 16, 33, draw.size(1, 64))
    tokens = draw.pick(0, 1, 31, 32, 33, draw.size(1, 100), draw.size(1, 300))
    x = draw.normal(batch, tokens, width, dtype=draw.pick(*DTYPES)) * draw.pick(1, 100, 1e-3)
    marked = draw.uniform(batch, tokens) < draw.pick(0.05, 0.5, 0.95, 2.0)
    x[~marked] = draw.pick(float("nan"), float("inf"), 7.0)
    mu = draw.normal(width)
    arguments = draw.layout(x), draw.layout(marked), draw.layout(mu)
    assert _same_bits(prompt_feature(*arguments), reference.prompt_feature(x, marked, mu))


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_and_batch_do_not_change_a_bit(draw, dtype):
    x, mu = draw.normal(1, 90, 40, dtype=dtype), draw.normal(40)
    alone = prompt_feature(x, torch.ones((1, 90), dtype=torch.bool, device=draw.device), mu)
    padded = torch.full((3, 131, 40), float("nan"), dtype=dtype, device=draw.device)
    marked = torch.zeros((3, 131), dtype=torch.bool, device=draw.device)
    for row, start in enumerate((0, 41, 17)):
        padded[row, start : start + 90], marked[row, start : start + 90] = x[0], True
    assert torch.equal(prompt_feature(padded, marked, mu), alone.expand(3, -1))


def test_no_marked_token_gives_nan(draw):
    marked = torch.tensor([[False, False], [True, False]], device=draw.device)
    feature = prompt_feature(draw.normal(2, 2, 5), marked, draw.normal(5))
    assert feature[0].isnan().all() and not feature[1].isnan().any()


def test_a_real_width(draw):
    x, mu = draw.normal(1, 5, 1536, dtype=torch.bfloat16), draw.normal(1536)
    marked = torch.tensor([[False, True, True, True, False]], device=draw.device)
    assert torch.equal(prompt_feature(x, marked, mu), reference.prompt_feature(x, marked, mu))
