"""Which further layers a memory may be added to, and how others are refused; the model is then as it was."""

from types import SimpleNamespace

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core import edited_model
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.further import with_further
from memoir_fast.hf.presets import complete

DOWN = "model.layers.{}.mlp.down_proj"
CONFIG = MemoirConfig(routing="paper", layer=DOWN.format(0), k=20, tau=0.95, background=4)


def test_how_many_are_the_next_blocks_layers_of_the_same_name(tiny_llama):
    for given in (2, (DOWN.format(1), DOWN.format(2)), [DOWN.format(1), DOWN.format(2)]):
        config = with_further(complete(CONFIG.replace(further=given), tiny_llama), tiny_llama)
        assert config.further == (DOWN.format(1), DOWN.format(2))
        assert MemoirConfig.from_dict(config.to_dict()).replace(check=True) == config
    assert with_further(CONFIG, tiny_llama) is CONFIG


def test_conv1d_layers(make_model):
    model = make_model("gpt2")
    name = "transformer.h.{}.mlp.c_proj"
    config = with_further(complete(CONFIG.replace(layer=name.format(0), further=2), model), model)
    assert config.further == (name.format(1), name.format(2))


@pytest.mark.parametrize(
    ("further", "error", "match"),
    [
        (3, ValueError, "further must be at most 2, the blocks that follow the layer .*, got 3: name an earlier layer"),
        ((DOWN.format(3),), ValueError, "the model has no layer"),
        ((DOWN.format(0),), ValueError, "must lie in blocks of their own, in the order of the model"),
        ((DOWN.format(2), DOWN.format(1)), ValueError, "must lie in blocks of their own, in the order of the model"),
        (("model.layers.0.self_attn.o_proj",), ValueError, "must lie in blocks of their own"),
        (("lm_head",), ValueError, "must lie in a block of the model"),
        (("model.layers.1.self_attn.o_proj",), UnsupportedModelError, "must have the edited layer's inputs, 48; .* 32"),
        (("model.layers.1.mlp",), TypeError, "must be a linear layer"),
        (("model.layers.1.experts.down_proj",), UnsupportedModelError, "belongs to a mixture of experts"),
    ],
)
def test_others_are_refused(tiny_llama, tiny_tokenizer, untouched, further, error, match):
    before = untouched(tiny_llama)
    with pytest.raises(error, match=match):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG.replace(further=further))
    assert untouched(tiny_llama) == before


def test_layers_of_another_dtype_or_device_are_refused(tiny_llama):
    config = complete(CONFIG.replace(further=1), tiny_llama)
    tiny_llama.model.layers[1].mlp.down_proj.double()
    with pytest.raises(
        UnsupportedModelError, match="must have the edited layer's dtype, torch.float32; .* torch.float64"
    ):
        with_further(config, tiny_llama)
    tiny_llama.model.layers[1].mlp.down_proj = torch.nn.Linear(48, 32, bias=False, device="meta")
    with pytest.raises(
        UnsupportedModelError, match="must have the edited layer's device, cpu; .* has meta: leave it out"
    ):
        with_further(config, tiny_llama)


def test_a_model_on_several_processes_has_one_layer(tiny_llama, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(edited_model, "part_of", lambda *_: SimpleNamespace())
    with pytest.raises(UnsupportedModelError, match="cannot be given a memory of several layers: leave further out"):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG.replace(further=1))


@pytest.mark.parametrize("given", [-1, True, 1.5, "model.layers.1.mlp.down_proj", ("a", "a"), ("a", ""), (1,)])
def test_what_is_neither_names_nor_a_number_is_refused(given):
    with pytest.raises(ValueError, match="further must "):
        MemoirConfig(further=given)


def test_one_layer_is_said_in_one_way_and_written_as_ever():
    for none in (0, (), []):
        config = MemoirConfig(further=none)
        assert config == MemoirConfig() and "further" not in config.to_dict()
