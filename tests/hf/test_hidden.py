"""Hidden states are found by what they are."""

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from memoir_fast.hf.hidden import hidden_states, with_hidden_states

HIDDEN = torch.ones(2, 3, 4)
IDS, MASK = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 1, 3, 3)


def test_of_a_call():
    assert hidden_states((HIDDEN, MASK), {}) is HIDDEN
    assert hidden_states((IDS,), {"attention_mask": MASK, "streams": HIDDEN}) is HIDDEN
    with pytest.raises(TypeError, match=r"must be called with hidden states \[B, S, H\], got Tensor, NoneType"):
        hidden_states((IDS,), {"mask": None})


def test_of_an_output():
    def double(one):
        return one * 2

    assert torch.equal(with_hidden_states(HIDDEN, double), HIDDEN * 2)
    assert torch.equal(with_hidden_states((IDS, HIDDEN), double)[1], HIDDEN * 2)
    output = BaseModelOutputWithPast(last_hidden_state=HIDDEN)
    assert with_hidden_states(output, double) is output
    assert torch.equal(output.last_hidden_state, HIDDEN * 2) and torch.equal(output[0], HIDDEN * 2)
    output = SimpleNamespace(stream=HIDDEN)
    assert torch.equal(with_hidden_states(output, double).stream, HIDDEN * 2)
    for nothing in ((IDS,), None, {"mask": MASK}, SimpleNamespace()):
        with pytest.raises(TypeError, match=r"a decoder must give hidden states"):
            with_hidden_states(nothing, double)
