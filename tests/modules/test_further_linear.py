"""`FurtherLinear` by itself: shapes, names, and what it does without a language model around it."""

import copy

import pytest
import torch
from torch import nn

from memoir_fast.errors import MemoirError
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.further_linear import FurtherLinear


@pytest.fixture
def model():
    """An edited layer with 4 outputs, and a further one with 2, each in a block."""
    first, second = nn.Linear(64, 4), nn.Linear(64, 2)
    edited = MemoirLinear(first, k=8, beside=2)
    further = FurtherLinear(second, edited, slice(4, 6))
    edited.further = (further,)
    return nn.ModuleDict({"first": edited, "second": further})


def test_the_rows_of_memory_are_the_layers_side_by_side(model):
    edited, further = model["first"], model["second"]
    assert edited.memory.weight.shape == (64, 6)
    assert (edited.out_features, further.out_features, further.in_features) == (4, 2, 64)
    assert (edited.outputs, further.outputs) == (slice(0, 4), slice(4, 6))
    assert further.weight is further.base.weight and further.bias is further.base.bias
    assert repr(further).startswith("FurtherLinear(\n  outputs=4..6\n") or "outputs=4..6" in repr(further)


def test_alone_the_edited_layer_adds_its_own_outputs(model):
    edited, x = model["first"], torch.randn(1, 5, 64)
    mask, columns = edited.hash(x)
    edited.store.append(mask[0])
    edited.memory.weight.normal_()
    rows = columns[0].long()
    expected = edited.base(x) + x[:, :, rows] @ edited.memory.weight[rows, :4]
    torch.testing.assert_close(edited(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(edited(x), expected)


def test_without_a_language_model_nothing_is_decided_for_it(model):
    with pytest.raises(MemoirError, match="goes by what the edited layer decides in a language model"):
        model["second"](torch.randn(1, 5, 64))


def test_while_an_edit_is_learned_it_gives_what_it_is_told_or_its_base(model):
    edited, further, x = model["first"], model["second"], torch.randn(1, 5, 64)
    with edited.replacing_output(lambda x, y: y):
        assert torch.equal(further(x), further.base(x))
        with further.replacing_output(lambda x, y: 2 * y):
            assert torch.equal(further(x), 2 * further.base(x))
        assert torch.equal(further(x), further.base(x))


def test_its_state_has_the_base_layers_names(model):
    names = set(model.state_dict())
    assert {"second.weight", "second.bias"} <= names and not any("second.base" in name for name in names)
    other = {"second.weight": torch.zeros(2, 64), "second.bias": torch.zeros(2)}
    model["second"].load_state_dict({name.removeprefix("second."): value for name, value in other.items()})
    assert not model["second"].weight.any()


def test_a_copy_goes_by_the_copy_of_the_edited_layer(model):
    twin = copy.deepcopy(model)
    assert twin["second"].edited is twin["first"] is not model["first"]
    assert twin["first"].further == (twin["second"],)
    assert [name for name, _ in twin["second"].named_modules()] == ["", "base"]
