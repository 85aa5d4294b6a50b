"""`prompt_feature` against a float32 loop in numpy, and its independence of batch and padding."""

import numpy as np
import pytest
import torch

from memoir_fast.ops import prompt_feature

OP = "prompt_feature"

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [(1, 1, 1), (1, 31, 63), (2, 32, 65), (3, 33, 100), (2, 64, 48), (1, 100, 1000), (1, 3, 14336)]


def oracle(x, prompt_mask, mu):
    """The documented order of additions, one float32 at a time per column."""
    rows = []
    for tokens, marks in zip(x.float().cpu().numpy(), prompt_mask.cpu().numpy(), strict=True):
        start = int(np.flatnonzero(marks)[0])
        total = np.zeros(tokens.shape[1], np.float32)
        for block in range(start, len(tokens), 32):
            block_sum = np.zeros_like(total)
            for token in range(block, min(block + 32, len(tokens))):
                if marks[token]:
                    block_sum += tokens[token]
            total += block_sum
        rows.append(total / np.float32(marks.sum()) - mu.cpu().numpy())
    return np.stack(rows)


def random_inputs(batch, tokens, width, dtype, device):
    prompt_mask = torch.rand(batch, tokens) < 0.8
    prompt_mask[:, tokens // 2] = True
    return (
        torch.randn(batch, tokens, width).to(dtype).to(device),
        prompt_mask.to(device),
        torch.randn(width).to(device),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "tokens", "width"), SIZES)
def test_random(op, backend, batch, tokens, width, dtype):
    x, prompt_mask, mu = random_inputs(batch, tokens, width, dtype, backend.device)
    feature = op(x, prompt_mask, mu)
    assert feature.dtype == torch.float32 and feature.shape == (batch, width) and feature.is_contiguous()
    np.testing.assert_array_equal(feature.cpu().numpy(), oracle(x, prompt_mask, mu))


def test_close_to_the_exact_mean(op, backend):
    x, prompt_mask, mu = random_inputs(3, 200, 65, torch.bfloat16, backend.device)
    exact = torch.stack([row[marks].double().mean(0) for row, marks in zip(x, prompt_mask, strict=True)]) - mu
    torch.testing.assert_close(op(x, prompt_mask, mu).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 32, 33, 70])
def test_depends_on_neither_batch_nor_padding(op, backend, tokens, dtype):
    prompt = torch.randn(tokens, 65).to(dtype).to(backend.device)
    mu = torch.randn(65).to(backend.device)
    alone = op(prompt[None], torch.ones(1, tokens, dtype=torch.bool, device=backend.device), mu)[0]
    for before, after in ((0, 5), (5, 0), (31, 1), (32, 0), (33, 64), (100, 100)):
        total = before + tokens + after
        x = torch.full((4, total, 65), float("nan"), dtype=dtype, device=backend.device)
        marks = torch.zeros(4, total, dtype=torch.bool, device=backend.device)
        x[2, before : before + tokens] = prompt
        marks[2, before : before + tokens] = True
        for row in (0, 1, 3):
            x[row] = torch.randn(total, 65).to(dtype)
            marks[row, row:] = True
        assert torch.equal(op(x, marks, mu)[2], alone), f"{before} pads before, {after} after"


def test_unmarked_tokens_inside_a_prompt_count_as_nothing(op, backend):
    x, _, mu = random_inputs(1, 5, 65, torch.float32, backend.device)
    x[0, 2] = float("inf")
    marks = torch.tensor([[True, True, False, True, True]], device=backend.device)
    np.testing.assert_array_equal(op(x, marks, mu).cpu().numpy(), oracle(x, marks, mu))


def test_marked_nan_reaches_only_its_own_row_and_column(op, backend):
    x, marks, mu = random_inputs(3, 40, 65, torch.float32, backend.device)
    marks[:] = True
    expected = op(x, marks, mu)
    x[1, 7, 3] = float("nan")
    feature = op(x, marks, mu)
    assert feature[1, 3].isnan()
    feature[1, 3] = expected[1, 3]
    assert torch.equal(feature, expected)


def test_row_without_a_marked_token(op, backend):
    x, marks, mu = random_inputs(3, 40, 65, torch.float32, backend.device)
    expected = op(x, marks, mu)
    marks[1] = False
    with pytest.raises(ValueError, match="must mark at least one token of every sequence, row 1 marks none"):
        op(x, marks, mu)
    feature = op(x, marks, mu, check=False)
    assert feature[1].isnan().all()
    assert torch.equal(feature[::2], expected[::2])


def test_no_tokens_at_all(op, backend):
    x, marks, mu = torch.empty(2, 0, 3), torch.empty(2, 0, dtype=torch.bool), torch.zeros(3)
    x, marks, mu = (value.to(backend.device) for value in (x, marks, mu))
    with pytest.raises(ValueError, match="row 0 marks none"):
        op(x, marks, mu)
    feature = op(x, marks, mu, check=False)
    assert feature.shape == (2, 3) and feature.isnan().all()


def test_empty_batch(op, backend):
    x, marks, mu = torch.empty(0, 5, 3), torch.empty(0, 5, dtype=torch.bool), torch.zeros(3)
    assert op(*(value.to(backend.device) for value in (x, marks, mu))).shape == (0, 3)


def test_strided_inputs(op, backend):
    x = torch.randn(65, 6, 80).to(backend.device).permute(1, 2, 0)[::2, ::2]
    marks = (torch.rand(40, 3) < 0.7).to(backend.device).T
    marks[:, 5] = True
    mu = torch.randn(130).to(backend.device)[::2]
    assert not x.is_contiguous() and not marks.is_contiguous() and not mu.is_contiguous()
    np.testing.assert_array_equal(op(x, marks, mu).cpu().numpy(), oracle(x, marks, mu))


def test_same_call_same_bits(op, backend):
    x, marks, mu = random_inputs(4, 150, 1000, torch.bfloat16, backend.device)
    first = op(x, marks, mu)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first, op(x, marks, mu))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.zeros(2, 3, 4).int()},
            TypeError,
            "x must be float16/bfloat16/float32/float64 [B, S, D], got int32 [2, 3, 4]",
        ),
        (
            {"x": torch.zeros(3, 4)},
            ValueError,
            "x must be float16/bfloat16/float32/float64 [B, S, D], got float32 [3, 4]",
        ),
        ({"prompt_mask": torch.ones(2, 3).int()}, TypeError, "prompt_mask must be bool [2, 3], got int32 [2, 3]"),
        ({"prompt_mask": torch.ones(2, 4).bool()}, ValueError, "prompt_mask must be bool [2, 3], got bool [2, 4]"),
        ({"mu": torch.zeros(4).double()}, TypeError, "mu must be float32 [4], got float64 [4]"),
        ({"mu": torch.zeros(5)}, ValueError, "mu must be float32 [4], got float32 [5]"),
        (
            {"prompt_mask": torch.tensor([[True] * 3, [False] * 3])},
            ValueError,
            "prompt_mask must mark at least one token of every sequence, row 1 marks none",
        ),
    ],
)
def test_errors(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 4), "prompt_mask": torch.ones(2, 3).bool(), "mu": torch.zeros(4)}
    with pytest.raises(error) as caught:
        prompt_feature(**(arguments | change))
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(opcheck, backend, dtype):
    opcheck(OP, *random_inputs(2, 40, 33, dtype, backend.device))


def test_compiles_whole(backend, same_compiled):
    same_compiled(*random_inputs(2, 40, 33, torch.float32, backend.device))
