"""Hidden states are found by what they are."""

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.hidden import batch_shape, hidden_states, in_rows, with_hidden_states

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


def test_rows_and_tokens_of_a_call():
    longer = torch.zeros(2, 9, dtype=torch.int64)
    assert batch_shape((IDS,), {"attention_mask": longer}) == (2, 3)
    assert batch_shape((), {"attention_mask": longer, "position_ids": longer, "ids": IDS}) == (2, 3)
    assert batch_shape((longer,), {"inputs_embeds": HIDDEN}) == (2, 3)
    assert batch_shape((None,), {"attention_mask": longer}) is None


def test_all_tokens_in_one_row():
    x = torch.arange(24.0).view(6, 4)
    assert torch.equal(in_rows(x, (2, 3)), x.view(2, 3, 4))
    with pytest.raises(
        UnsupportedModelError, match="given 5 of the 2 x 3 tokens of a batch: name a layer that sees all"
    ):
        in_rows(x[:5], (2, 3))
    with pytest.raises(UnsupportedModelError, match="outside of a call of the model's decoder"):
        in_rows(x, None)
