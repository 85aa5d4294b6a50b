"""masked_linear, its in-place form and prompt_feature of the extension on the CPU, against the reference."""

import pytest
import torch

from memoir_fast.ops import linear_limits
from memoir_fast.reference import masked_linear as reference
from memoir_fast.reference.prompt_feature import prompt_feature

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Both sides add in float32, in another order, and round once; float64 leaves only its own rounding.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}


def assert_near(y, expected) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(y, expected, rtol=0, atol=TOLERANCE[y.dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1, 1),
        (1, 1, 1536, 576, 440, 3),
        (3, 1, 63, 65, 20, 2),
        (4, 5, 300, 129, 77, 2),
        (9, 2, 40, 1000, 13, 2),
    ],
    ids=str,
)
@pytest.mark.usefixtures("poison")
def test_shapes(raw, cpu_path, linear_inputs, dtype, shape):
    arguments = linear_inputs(*shape, dtype)
    expected = reference.masked_linear(*arguments)
    y = raw.masked_linear(*arguments)
    assert_near(y, expected)
    assert not y[arguments[3] < 0].any()
    base = torch.randn_like(y)
    untouched = base.clone()
    other = base.clone()
    raw.masked_linear_add_(base, *arguments)
    reference.masked_linear_add_(other, *arguments)
    assert_near(base, other)
    assert torch.equal(base[arguments[3] < 0], untouched[arguments[3] < 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_every_path_thread_count_and_batch(raw, extension, linear_inputs, dtype):
    x, memory, columns, _ = linear_inputs(5, 1, 500, 1100, 123, 2, dtype)
    route = torch.tensor([1, 0, 1, 1, -1]).int()
    expected = torch.cat([raw.masked_linear(x[i : i + 1], memory, columns, route[i : i + 1]) for i in range(5)])
    for path, supported in extension.cpu_features().items():
        for threads in (1, 2, 3) if supported else ():
            extension.set_cpu_path(path)
            torch.set_num_threads(threads)
            assert torch.equal(raw.masked_linear(x, memory, columns, route), expected), (path, threads)
    extension.set_cpu_path("auto")
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_where_sums_are_exact(raw, cpu_path, dtype):
    """Small whole numbers leave no rounding, so the result must be the reference's to the bit."""
    x = torch.randint(-2, 3, (2, 3, 90)).to(dtype)
    memory = torch.randint(-2, 3, (90, 77)).to(dtype)
    columns = torch.randperm(90)[:31].sort().values[None].int()
    route = torch.zeros(2).int()
    assert torch.equal(raw.masked_linear(x, memory, columns, route), reference.masked_linear(x, memory, columns, route))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_bit_pattern_is_widened_and_narrowed_as_torch_does(raw, cpu_path, dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    memory, one = every[None].contiguous(), torch.ones(1, 1, 1).to(dtype)
    y = raw.masked_linear(one, memory, torch.zeros(1, 1).int(), torch.zeros(1).int()).flatten()
    assert torch.equal(y.isnan(), every.isnan())
    finite = ~every.isnan()
    assert torch.equal(y[finite], every[finite])


def test_narrowing_rounds_to_even(raw, cpu_path):
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.randn(4096).to(dtype)
        memory = torch.stack([values, torch.randn(4096).to(dtype)])
        x = torch.tensor([[[1.0, 2**-9]]]).to(dtype)
        y = raw.masked_linear(x, memory, torch.tensor([[0, 1]]).int(), torch.zeros(1).int())
        exact = (memory[0].float() + memory[1].float() * 2**-9).to(dtype)
        assert torch.equal(y.flatten(), exact)


def test_views(raw, cpu_path, linear_inputs):
    x, memory, columns, route = linear_inputs(3, 2, 64, 80, 9, 4, torch.float32)
    expected = reference.masked_linear(x, memory, columns, route)
    assert_near(raw.masked_linear(x.transpose(0, 2).contiguous().transpose(0, 2), memory, columns, route), expected)
    assert_near(raw.masked_linear(x, memory.t().contiguous().t(), columns, route), expected)
    assert_near(raw.masked_linear(x, memory, columns.t().contiguous().t(), route.repeat(2, 1).t()[:, 0]), expected)
    base = torch.zeros(80, 3, 2).permute(1, 2, 0)
    raw.masked_linear_add_(base, x, memory, columns, route)
    assert_near(base, expected)


@pytest.fixture
def assert_changes_after(raw, linear_inputs, monkeypatch):
    """The op is right, and calls `module.name` for more than so many tokens only."""

    def check(tokens, op, dtype, name):
        longer, expected = [], getattr(reference, op)
        other_way = expected if name is None else getattr(linear_limits, name)

        def counted(*arguments):
            longer.append(True)
            return other_way(*arguments)

        if name is not None:
            monkeypatch.setattr(linear_limits, name, counted)
        run = linear_limits.on_cpu(counted if name is None else expected).wrap(getattr(raw, op).default)
        for more in (0, 1):
            arguments = linear_inputs(2, tokens + more, 64, 48, 20, 3, dtype)
            base = [torch.randn(2, tokens + more, 48).to(dtype)] if op.endswith("_") else []
            other = [tensor.clone() for tensor in base]
            y, wanted = run(*base, *arguments), expected(*other, *arguments)
            assert_near(base[0] if base else y, other[0] if base else wanted)
            assert len(longer) == more

    return check


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 96), (torch.float16, 512), (torch.float64, 64)], ids=str)
@pytest.mark.parametrize("op", ["masked_linear", "masked_linear_add_"])
def test_long_inputs_take_the_matrix_product(assert_changes_after, op, dtype, tokens):
    """One token more than the kernel is fast for, and the reference runs."""
    assert_changes_after(tokens, op, dtype, None)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("op", ["masked_linear", "masked_linear_add_"])
def test_long_bfloat16_takes_the_processors_own_product(assert_changes_after, monkeypatch, op, quick):
    """Where there is one; else the reference, which widens."""
    if quick and not linear_limits._multiplies_bfloat16():
        pytest.skip("this processor has no products of bfloat16")
    monkeypatch.setattr(linear_limits, "_multiplies_bfloat16", lambda: quick)
    assert_changes_after(96 if quick else 512, op, torch.bfloat16, "_gathered" if quick else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("width", [1, 511, 513, 1536])
def test_prompt_feature(raw, threads, dtype, tokens, width):
    x = (torch.randn(3, tokens, width) * 3).to(dtype)
    marked = torch.rand(3, tokens) < 0.7
    marked[0] = torch.arange(tokens) >= tokens // 2
    marked[2] = False
    mu = torch.randn(width)
    feature = raw.prompt_feature(x, marked, mu)
    assert torch.equal(feature[:2].isnan(), prompt_feature(x, marked, mu)[:2].isnan())
    assert torch.equal(feature.nan_to_num(), prompt_feature(x, marked, mu).nan_to_num())
    assert feature[2].isnan().all()


def test_prompt_feature_views_and_empty(raw):
    x = torch.randn(700, 5, 2).permute(2, 1, 0)
    marked = (torch.rand(5, 2) < 0.8).t()
    marked[:, 0] = True
    mu = torch.randn(1400)[::2]
    assert torch.equal(raw.prompt_feature(x, marked, mu), prompt_feature(x, marked, mu))
    assert raw.prompt_feature(torch.empty(2, 0, 9), torch.empty(2, 0).bool(), torch.zeros(9)).isnan().all()
    assert raw.prompt_feature(torch.empty(0, 3, 9), torch.empty(0, 3).bool(), torch.zeros(9)).shape == (0, 9)
