"""`TopHash`: what it hashes, and what survives moves, copies and files."""

import copy

import pytest
import torch

from memoir_fast import ops
from memoir_fast.modules import TopHash


def test_forward_is_the_two_ops_in_turn():
    hasher, x = TopHash(100, 9, seed=3), torch.randn(2, 7, 100)
    hasher.mu.normal_()
    marked = torch.rand(2, 7) > 0.5
    marked[:, 0] = True
    mask, columns = hasher(x, marked)
    expected = ops.tophash(ops.prompt_feature(x, marked, hasher.mu), 9, hasher.permutation)
    assert torch.equal(mask, expected[0]) and torch.equal(columns, expected[1])
    largest = ((x * marked[..., None]).sum(1) / marked.sum(1, keepdim=True) - hasher.mu).abs().topk(9).indices
    assert torch.equal(hasher.permutation[largest].sort().values, columns)


def test_all_tokens_are_the_prompt_by_default():
    hasher, x = TopHash(64, 8), torch.randn(2, 5, 64)
    everything = torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(hasher(x)[0], hasher(x, everything)[0])


def test_permutation_comes_from_the_seed_and_from_no_global_generator():
    before = torch.random.get_rng_state()
    one, same, other = TopHash(50, 4, seed=7), TopHash(50, 4, seed=7), TopHash(50, 4, seed=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.permutation, same.permutation) and not torch.equal(one.permutation, other.permutation)
    assert one.permutation.sort().values.tolist() == list(range(50))


@pytest.mark.parametrize("k", [0, -1, 65])
def test_k_outside_of_the_width_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must lie in \[1, D = 64\], got {k}"):
        TopHash(64, k)


def test_k_of_the_whole_width_sets_every_bit():
    mask, columns = TopHash(33, 33)(torch.randn(1, 2, 33))
    assert columns[0].tolist() == list(range(33))
    assert mask[0].tolist() == [-1, 1, 0, 0]


@pytest.mark.parametrize(
    "move", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.to("cpu")]
)
def test_mu_stays_float32_when_the_model_changes_dtype(move):
    hasher = TopHash(64, 8)
    hasher.mu.normal_()
    mu, x = hasher.mu.clone(), torch.randn(1, 3, 64)
    mask = hasher(x)[0]
    model = move(torch.nn.Sequential(torch.nn.Linear(2, 2), hasher))
    assert hasher.mu.dtype == torch.float32 and torch.equal(hasher.mu, mu)
    assert hasher.permutation.dtype == torch.int32
    assert torch.equal(model[1](x)[0], mask)


def test_state_dict_carries_permutation_and_mu():
    hasher, other = TopHash(64, 8, seed=1), TopHash(64, 8, seed=2)
    hasher.mu.normal_()
    other.load_state_dict(hasher.state_dict())
    x = torch.randn(3, 4, 64)
    assert torch.equal(other(x)[0], hasher(x)[0])
    assert torch.equal(copy.deepcopy(hasher)(x)[0], hasher(x)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(bad):
    hasher, x = TopHash(64, 8), torch.randn(2, 3, 64)
    x[1, 2, 5] = bad
    with pytest.raises(ValueError, match="feature must be finite, row 1 holds NaN or infinity"):
        hasher(x)
    mask, columns = hasher(x, check=False)
    assert mask[0].any() and not mask[1].any()
    assert (columns[1] == -1).all()


def test_a_sequence_without_a_prompt():
    hasher, x = TopHash(64, 8), torch.randn(2, 3, 64)
    marked = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(ValueError, match="row 1 marks none"):
        hasher(x, marked)
    assert not hasher(x, marked, check=False)[0][1].any()


def test_extra_repr():
    assert repr(TopHash(64, 8, seed=5)) == "TopHash(width=64, k=8, seed=5)"
