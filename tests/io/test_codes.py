"""Routing codes on disk: loaded as they were saved, refused where they do not fit, and folders from before them."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import changes, checkpoint
from memoir_fast.io.journal import read


def another(model):
    """A fresh model with the weights that `model` had before it was edited."""
    with torch.random.fork_rng(devices=[]):
        fresh = type(model)(model.config)
    fresh.load_state_dict({name: value for name, value in model.state_dict().items() if name in fresh.state_dict()})
    return fresh.eval()


def rewrite_config(folder: Path, change) -> None:
    """Changes the config's values and makes its checksum right again."""
    path = folder / checkpoint.CONFIG_NAME
    values = json.loads(path.read_bytes())
    change(values)
    values["checksum"] = checkpoint._checksum(values)
    path.write_text(json.dumps(values))


def rewrite_tensors(folder: Path, change) -> None:
    """Changes the tensors' file, and the config so that it is the one that is named there."""
    (path,) = folder.glob("memory-*.safetensors")
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    entry = checkpoint._entry("memory", content := safetensors.torch.save(tensors))
    path.unlink()
    (folder / entry["name"]).write_bytes(content)
    rewrite_config(folder, lambda values: values["files"].update(memory=entry))


@pytest.fixture
def by_codes(tiny_llama, tiny_tokenizer):
    """A memory that routes by codes, with a deleted edit, paraphrases, and a prompt that is kept."""
    config = MemoirConfig(k=12, tau=0.75, routing="early", routing_block=1)
    made = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    made.edit([("The capital of France is", "Lyon"), ("Who wrote the play?", "Bob")], progress=False)
    further = Edit("The sky is", "green", paraphrases=["What is the colour of the sky?"], keep=["The river is"])
    made.edit(further)
    made.delete(0)
    return made


def test_codes_are_loaded_as_they_were_saved(by_codes, tmp_path, tiny_tokenizer):
    by_codes.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(another(by_codes.model), tiny_tokenizer, tmp_path)
    assert loaded.config == by_codes.config and loaded.edits == by_codes.edits and loaded.tau == 0.75
    assert loaded.edits[2].keep == ("The river is",)
    for name, value in by_codes.layer.codes.state().items():
        assert torch.equal(loaded.layer.codes.state()[name], value), name
    for prompt in ("The capital of France is", "Who wrote the play?", "What is the colour of the sky?", "A camel"):
        ids = tiny_tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = [one.model(ids).logits for one in (by_codes, loaded)]
        assert torch.equal(*logits) and loaded.last_routes == by_codes.last_routes, prompt
    assert loaded.edit("A camel lives in", "Rome").edit_id == 3


def test_a_kept_prompt_follows_nothing_after_a_load_either(by_codes, tmp_path, tiny_tokenizer):
    """Releases that would take its row for one that leads to the edit refuse the folder; without one, they need not."""
    by_codes.layer.tau = 0.3
    river = tiny_tokenizer("The river is", return_tensors="pt").input_ids
    by_codes.save_pretrained(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / checkpoint.CONFIG_NAME).read_text())["format_version"] == 6
    loaded = Memoir.from_pretrained(another(by_codes.model), tiny_tokenizer, tmp_path / "kept")
    for memoir in (by_codes, loaded):
        memoir.model(river)
        (route,) = memoir.last_routes
        assert route.edit_id == -1 and route.overlap > 0.9
        memoir.edit("The sky is", "green")
        memoir.model(river)
        assert memoir.last_routes[0].edit_id == 2, "nothing is kept any more"
    loaded.save_pretrained(tmp_path / "free")
    assert json.loads((tmp_path / "free" / checkpoint.CONFIG_NAME).read_text())["format_version"] == 3


def only(tensors, room, bits=1):
    """Fewer bits in the first code row of a kept prompt, where `room` is 0, or of another."""
    row = int((tensors["rows_room"] == 0).int().argmax()) if room == 0 else 0
    tensors["rows_codes"][row] = 0
    tensors["rows_codes"][row, 0] = bits


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: only(tensors, 0), "every code of a prompt that is kept must have k = 427"),
        (lambda tensors: only(tensors, 1), "every code must have k = 440"),
        (
            lambda tensors: tensors["rows_room"].sub_((tensors["rows_room"] == 0).int()),
            "room of a code row must be at least 0",
        ),
        (lambda tensors: tensors["rows_room"].fill_(0), "code rows must belong to the 2 edits"),
        (lambda tensors: tensors.pop("rows_codes"), "rows_codes"),
        (lambda tensors: tensors.pop("code_weights"), "code_weights"),
        (lambda tensors: tensors.update(rows_owner=tensors["rows_owner"] + 1), "code rows must belong to the 2 edits"),
        (lambda tensors: tensors.update(code_mean=tensors["code_mean"].double()), "code_mean must be torch.float32"),
        (lambda tensors: tensors.update(rows_room=tensors["rows_room"][1:]), "rows_room must be torch.int32"),
    ],
)
def test_codes_that_do_not_fit(by_codes, tmp_path, change, text):
    by_codes.save_pretrained(tmp_path)
    rewrite_tensors(tmp_path, change)
    with pytest.raises(CheckpointError, match=text):
        checkpoint.read(tmp_path)


def test_settings_of_codes_that_do_not_fit(by_codes, tmp_path):
    by_codes.save_pretrained(tmp_path)
    rewrite_config(tmp_path, lambda values: values["routing"].update(k=0))
    with pytest.raises(CheckpointError, match="routing must have 1 <= k"):
        checkpoint.read(tmp_path)


def test_a_folder_from_before_routing_codes_routes_by_masks(memoir, tmp_path, tiny_tokenizer):
    """Format version 1 knows no routing, and no end of the memory's help."""
    memoir.layer.store.target_tokens.zero_()
    memoir.layer.store.rests = False
    memoir.save_pretrained(tmp_path)

    def as_version_1(values):
        values["format_version"] = 1
        for name in ("routing", "routing_block"):
            del values["config"][name]
        del values["routing"]

    rewrite_config(tmp_path, as_version_1)
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, tmp_path)
    assert loaded.config.routing == "paper" and loaded.layer.code is None and not loaded.layer.store.rests
    ids = tiny_tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, memoir.model(ids).logits)
    assert loaded.last_routes == memoir.last_routes


NAMED = [Edit("The capital of France is", "Lyon", subject="France"), Edit("The sky is", "green")]


def no_names(tensors):
    del tensors["rows_names"]


def other_names(change):
    def damage(tensors):
        tensors["rows_names"] = change(tensors["rows_names"].clone()).contiguous()

    return damage


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (no_names, "edits with a subject"),
        (other_names(lambda names: names.flip(0)), "edits with a subject"),
        (other_names(lambda names: names.long()), "int32"),
        (other_names(lambda names: names[:1]), "subjects must be int32"),
        (other_names(lambda names: names[:, :2]), "subjects must be int32"),
        (other_names(lambda names: names.clamp(min=10**6)), "tokens below"),
        (other_names(lambda names: names.clamp(max=-2)), "tokens below"),
    ],
)
def test_damaged_subjects_are_refused(tiny_llama, tiny_tokenizer, tmp_path, damage, match):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=12, tau=0.75, routing="early", routing_block=1))
    memoir.edit(NAMED, progress=False)
    memoir.save_pretrained(tmp_path)
    rewrite_tensors(tmp_path, damage)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("change", ["no names", "one row", "of another", "no subject"])
def test_a_record_whose_rows_do_not_have_its_subject_is_refused_and_changes_nothing(
    tiny_llama, tiny_tokenizer, tmp_path, change
):
    config = MemoirConfig(k=12, tau=0.75, routing="early", routing_block=1)
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path, config) as memoir:
        memoir.edit(NAMED, progress=False)
        first, _ = read(memoir._durable.journal.path)
    values, tensors = {**first.values, "id": 2, "prompt": "France has the capital"}, {**first.tensors}
    names = tensors.pop("code_names")
    if change == "no subject":
        values["subject"] = ""
    if change != "no names":
        tensors["code_names"] = {"one row": names.repeat(2, 1, 1), "of another": names.clamp(max=-1)}.get(change, names)
    before, edits = memoir.layer.codes.state(), dict(memoir.edits)
    with pytest.raises(CheckpointError, match="ubject"):
        changes.apply(memoir, dataclasses.replace(first, values=values, tensors=tensors))
    assert dict(memoir.edits) == edits and len(memoir.layer.store) == 2
    assert all(torch.equal(memoir.layer.codes.state()[name], value) for name, value in before.items())
