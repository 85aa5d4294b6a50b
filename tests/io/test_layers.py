"""Files of a memory of several layers: which those are is part of what must be as it was saved."""

import copy
import dataclasses
import json

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig, MemoirError
from memoir_fast.errors import CheckpointError, NewerVersionError, WrongModelError
from memoir_fast.io import checkpoint

PROMPTS = ("The capital of France is", "Who wrote the play?")


def attach(model, tokenizer, **changes):
    recipe = dataclasses.replace(RECIPES["paper"], steps=3, prefixes=1)
    layer = "model.layers.1.mlp.down_proj"
    return Memoir.attach(
        model, tokenizer, MemoirConfig(recipe=recipe, layer=layer, k=12, tau=0.75, background=8, **changes)
    )


def logits(model, tokenizer, prompt):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(prompt).input_ids])).logits


def rewrite_config(folder, change):
    """Changes the config's values and makes its checksum right again."""
    path = folder / checkpoint.CONFIG_NAME
    values = json.loads(path.read_bytes())
    change(values)
    values["checksum"] = checkpoint._checksum(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def plain(tiny_llama):
    """The model as it is before it has a memory."""
    return copy.deepcopy(tiny_llama)


@pytest.fixture
def several(plain, tiny_llama, tiny_tokenizer, tmp_path):
    """A memory of two layers with an edit, and the folder that it is saved to."""
    memoir = attach(tiny_llama, tiny_tokenizer, further=1)
    memoir.edit(PROMPTS[0], "Rome")
    memoir.save_pretrained(tmp_path)
    return memoir, tmp_path


def test_everything_comes_back(several, plain, tiny_tokenizer):
    memoir, folder = several
    found = checkpoint.read(folder)
    assert found.config == memoir.config and found.config.further == ("model.layers.2.mlp.down_proj",)
    assert found.tensors["memory_values"].shape[1] == 64
    with pytest.MonkeyPatch.context() as older:
        older.setattr(checkpoint, "FORMAT_VERSION", 4)
        with pytest.raises(NewerVersionError, match="format version 5, .* reads up to 4"):
            Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    loaded = Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    assert torch.equal(
        logits(memoir.model, tiny_tokenizer, PROMPTS[0]), logits(loaded.model, tiny_tokenizer, PROMPTS[0])
    )
    assert loaded.last_routes[0].edit_id == 0 and loaded.config == memoir.config


def test_another_weight_of_a_further_layer(several, plain, tiny_tokenizer):
    _, folder = several
    with torch.no_grad():
        plain.model.layers[2].mlp.down_proj.weight[3, 5] += 1
    with pytest.raises(
        WrongModelError, match=r"base model: model.layers.2.mlp.down_proj: weight_sha256: expected \w{12}"
    ):
        Memoir.from_pretrained(plain, tiny_tokenizer, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["config"].pop("further"),
        lambda values: values["config"].update(further=1),
        lambda values: values["config"].update(further=["model.layers.0.mlp.down_proj"]),
        lambda values: values["fingerprint"].pop("further"),
        lambda values: values["fingerprint"].update(further="model.layers.2.mlp.down_proj"),
        lambda values: values["fingerprint"].update(further=[{}]),
        lambda values: values["fingerprint"]["further"][0].update(weight_shape=[48]),
        lambda values: values["fingerprint"]["further"][0].update(weight_shape=[48, 16]),
    ],
)
def test_further_layers_that_contradict_each_other(several, change):
    _, folder = several
    rewrite_config(folder, change)
    with pytest.raises(CheckpointError, match="further must be the layers|malformed|must have the side"):
        checkpoint.read(folder)


def test_another_number_of_layers_is_another_memory(several, plain, tiny_tokenizer, tmp_path):
    """Its edits are not those of a memory that has fewer, whether they are merged or taken over."""
    _, folder = several
    other = attach(copy.deepcopy(plain), tiny_tokenizer)
    other.edit(PROMPTS[1], "Rome")
    with pytest.raises(MemoirError, match="further: .* here, .* there"):
        other.merge(folder)
    other.save_pretrained(tmp_path / "one")
    loaded = Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    for path in folder.glob("*.*"):
        path.unlink()
    for path in (tmp_path / "one").iterdir():
        path.rename(folder / path.name)
    with pytest.raises(MemoirError, match="holds another memory than it did .*further"):
        loaded.reload()
