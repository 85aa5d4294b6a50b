"""Files on disk: what is saved comes back, what is damaged is refused by name, and no crash loses a memory."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig, MemoirError, MemoirLinear
from memoir_fast.errors import CheckpointError, WrongModelError
from memoir_fast.io import checkpoint

PROMPTS = ("The capital of France is", "Who wrote the play?", "Which animal lives in the desert?")
SETTINGS = {"k": 12, "tau": 0.75, "background": 8}


def attach(model, tokenizer, **changes):
    recipe = dataclasses.replace(RECIPES["paper"], steps=3, prefixes=1)
    return Memoir.attach(model, tokenizer, MemoirConfig(recipe=recipe, **{**SETTINGS, **changes}))


def logits(model, tokenizer, prompt):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(prompt).input_ids])).logits


def another(model):
    """A fresh model with the weights that `model` had before it was edited."""
    with torch.random.fork_rng(devices=[]):
        fresh = type(model)(model.config)
    fresh.load_state_dict({name: value for name, value in model.state_dict().items() if name in fresh.state_dict()})
    return fresh.eval()


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data_file(folder: Path, kind: str) -> Path:
    (found,) = folder.glob("memory_config.json" if kind == "config" else f"{kind}-*")
    return found


def rewrite_config(folder: Path, change) -> None:
    """Changes the config's values and makes its checksum right again."""
    path = folder / checkpoint.CONFIG_NAME
    values = json.loads(path.read_bytes())
    change(values)
    values["checksum"] = checkpoint._checksum(values)
    path.write_text(json.dumps(values))


def test_everything_comes_back(memoir, saved, tiny_tokenizer):
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, saved)
    for prompt in PROMPTS:
        before, after = logits(memoir.model, tiny_tokenizer, prompt), logits(loaded.model, tiny_tokenizer, prompt)
        assert torch.equal(before, after)
        assert memoir.last_routes == loaded.last_routes
    store, restored = memoir.layer.store, loaded.layer.store
    assert loaded.edits == memoir.edits
    assert loaded.prefixes == memoir.prefixes
    assert loaded.config == memoir.config
    assert restored.live == store.live == [0, 2]
    assert len(restored) == 3
    assert torch.equal(restored.columns[[0, 2]], store.columns[[0, 2]])
    assert torch.equal(loaded.layer.memory.weight, memoir.layer.memory.weight)
    assert loaded.layer.memory.weight.any()


def test_ids_go_on_and_prompts_are_replaced_after_loading(memoir, saved, tiny_tokenizer):
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, saved)
    assert loaded.edit("Who is there?", "Nobody").edit_id == 3
    again = loaded.edit(PROMPTS[0], "Athens")
    assert (again.edit_id, again.replaced) == (0, True)
    with pytest.raises(MemoirError, match="no live edit has the id 1"):
        loaded.delete(1)


def test_threshold_in_force_is_kept(memoir, tmp_path, tiny_tokenizer):
    memoir.layer.tau = 0.9
    memoir.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, tmp_path)
    assert loaded.tau == 0.9
    assert loaded.layer.min_overlap == memoir.layer.min_overlap


def test_thresholds_of_single_edits_are_kept(memoir, tmp_path, tiny_tokenizer):
    memoir.layer.store.set_min_overlap(11, 0)
    memoir.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, tmp_path)
    rows = len(memoir.layer.store)
    assert loaded.layer.store.min_overlap[:rows].tolist() == [11] + [memoir.layer.min_overlap] * (rows - 1)


def test_empty_memory(tiny_llama, tiny_tokenizer, tmp_path):
    memoir = attach(tiny_llama, tiny_tokenizer)
    memoir.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(another(tiny_llama), tiny_tokenizer, tmp_path)
    assert loaded.edits == {} and len(loaded.layer.store) == 0 and loaded.prefixes == []
    assert loaded.edit(PROMPTS[0], "Rome").edit_id == 0


def test_conv1d_layer(tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=384, n_positions=128, n_embd=32, n_layer=2, n_head=2, eos_token_id=1)
    memoir = attach(GPT2LMHeadModel(config).eval(), tiny_tokenizer)
    memoir.edit(PROMPTS[0], "Rome")
    memoir.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, tmp_path)
    assert torch.equal(
        logits(memoir.model, tiny_tokenizer, PROMPTS[0]), logits(loaded.model, tiny_tokenizer, PROMPTS[0])
    )


def test_memory_follows_the_models_dtype(memoir, saved, tiny_tokenizer):
    loaded = Memoir.from_pretrained(another(memoir.model).bfloat16(), tiny_tokenizer, saved)
    assert loaded.layer.memory.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.layer.memory.weight, memoir.layer.memory.weight.bfloat16())
    logits(loaded.model, tiny_tokenizer, PROMPTS[0])
    assert loaded.last_routes[0].edit_id == 0


def test_float16_has_other_small_weights(memoir, saved, tiny_tokenizer):
    model = another(memoir.model).half()
    with pytest.raises(WrongModelError, match="weight_sha256: expected .* in float16, where small weights are rounded"):
        Memoir.from_pretrained(model, tiny_tokenizer, saved)
    model.config.vocab_size += 1
    with pytest.raises(WrongModelError, match="vocab_size: expected") as other:
        Memoir.from_pretrained(model, tiny_tokenizer, saved)
    assert "small weights" not in str(other.value)


def test_read_needs_no_model(saved, memoir):
    found = checkpoint.read(saved)
    assert found.edits == memoir.edits
    assert found.fingerprint["weight_hashed_as"] == "bfloat16"
    assert found.sizes == {path.name: path.stat().st_size for path in saved.iterdir() if path.suffix != ".json"}


def test_texts_in_any_script(tiny_llama, tiny_tokenizer, tmp_path):
    memoir = attach(tiny_llama, tiny_tokenizer)
    memoir.edit('The "capital"\u2028of 日本 is\n', "Kyōto 🗼", progress=False)
    memoir.save_pretrained(tmp_path)
    assert checkpoint.read(tmp_path).edits == memoir.edits


# Damage


@pytest.mark.parametrize("kind", ["memory", "edits", "config"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_flipped_bit(saved, kind, place):
    path = data_file(saved, kind)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(path.name)):
        checkpoint.read(saved)


@pytest.mark.parametrize("kind", ["memory", "edits", "config"])
@pytest.mark.parametrize("left", [0, 1, 100])
def test_truncated(saved, kind, left):
    path = data_file(saved, kind)
    path.write_bytes(path.read_bytes()[:left])
    reason = "not JSON" if kind == "config" else "is truncated: expected"
    with pytest.raises(CheckpointError, match=rf"{path.name} is .*{reason}|{path.name} {reason}"):
        checkpoint.read(saved)


@pytest.mark.parametrize("kind", ["memory", "edits", "config"])
def test_missing(saved, kind):
    path = data_file(saved, kind)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(path.name)} is missing"):
        checkpoint.read(saved)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder .*nothing"):
        checkpoint.read(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is no folder"):
        checkpoint.read(tmp_path / "file")


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"format": "other"}', b"\xff\xfe", b"[" * 100_000])
def test_config_that_describes_no_memory(saved, content):
    (saved / checkpoint.CONFIG_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"memory_config\.json (is damaged: not JSON|does not describe a memory)"):
        checkpoint.read(saved)


def test_newer_format_version(saved):
    newer, most = checkpoint.FORMAT_VERSION + 1, checkpoint.FORMAT_VERSION
    rewrite_config(saved, lambda values: values.update(format_version=newer, package_version="9.0"))
    with pytest.raises(
        CheckpointError, match=f"version {newer}, .* reads up to {most}; it was written by 9.0: upgrade"
    ):
        checkpoint.read(saved)


def test_unknown_keys_warn(saved):
    def change(values):
        values["colour"] = "blue"
        values["config"]["flavour"] = "sweet"

    rewrite_config(saved, change)
    with pytest.warns(UserWarning) as caught:
        checkpoint.read(saved)
    assert [name in str(one.message) for one, name in zip(caught, ("colour", "flavour"), strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values.pop("files"), "malformed: KeyError: 'files'"),
        (lambda values: values["files"]["edits"].update(name="../../etc/passwd"), "is no name of a edits file"),
        (lambda values: values["files"]["memory"].update(size=None), "malformed"),
        (lambda values: values["config"].update(tau=7), "tau must lie in"),
        (lambda values: values.update(tau=0.0), "tau must lie in"),
        (lambda values: values.update(prefixes=["a", 1]), "prefixes must be a list of texts"),
        (lambda values: values["fingerprint"].update(weight_shape=[5, 6]), "must have the sides 48 and 32"),
    ],
)
def test_config_that_contradicts_itself(saved, change, reason):
    rewrite_config(saved, change)
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.read(saved)


@pytest.mark.parametrize(
    ("k", "reason"),
    [(11, r"every mask must have k = 11 of 48 bits set, got \[12\]"), (49, r"do not fit the model: k must lie")],
)
def test_k_that_contradicts_the_masks(saved, memoir, tiny_tokenizer, k, reason):
    rewrite_config(saved, lambda values: values["config"].update(k=k))
    model = another(memoir.model)
    with pytest.raises(CheckpointError, match=reason):
        Memoir.from_pretrained(model, tiny_tokenizer, saved)
    assert not any(isinstance(module, MemoirLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab_size": 400}, "vocab_size: expected 384, got 400"),
        ({"num_hidden_layers": 4}, "num_hidden_layers: expected 3, got 4"),
        ({"num_hidden_layers": 1}, "the model has no layer 'model.layers.2.mlp.down_proj'"),
        ({"intermediate_size": 64}, r"weight_shape: expected \[32, 48\], got \[32, 64\]"),
    ],
)
def test_another_model(saved, memoir, tiny_tokenizer, change, reason):
    model = type(memoir.model)(type(memoir.model.config)(**{**memoir.model.config.to_dict(), **change}))
    names = {name for name, _ in model.named_modules()}
    with pytest.raises(WrongModelError, match=reason):
        Memoir.from_pretrained(model, tiny_tokenizer, saved)
    assert {name for name, _ in model.named_modules()} == names


def test_another_weight(saved, memoir, tiny_tokenizer):
    model = another(memoir.model)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 1
    with pytest.raises(
        WrongModelError, match=r"base model: weight_sha256: expected \w{12}\.\.\., got \w{12}\.\.\.\. Its"
    ):
        Memoir.from_pretrained(model, tiny_tokenizer, saved)


def test_model_that_has_a_memory(saved, memoir, tiny_tokenizer):
    with pytest.raises(MemoirError, match="has a memory already"):
        Memoir.from_pretrained(memoir.model, tiny_tokenizer, saved)
    logits(memoir.model, tiny_tokenizer, PROMPTS[0])
    assert memoir.last_routes[0].edit_id == 0


# The hub


def test_hub_id(saved, memoir, tiny_tokenizer, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options, name=name) or str(saved)
    )
    loaded = Memoir.from_pretrained(another(memoir.model), tiny_tokenizer, "somebody/memory", revision="v1")
    assert loaded.edits == memoir.edits
    assert asked == {
        "name": "somebody/memory",
        "revision": "v1",
        "allow_patterns": [
            "memory_config.json",
            "memory-*.safetensors",
            "edits-*.jsonl",
            "journal-*.log",
            "history.jsonl",
        ],
    }


def test_hub_that_has_none(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="no folder somebody/memory, and the hub gave none: no such repository"):
        checkpoint.read("somebody/memory")


# Saving


def test_saving_again_leaves_only_the_new_files(saved, memoir):
    before = set(listing(saved))
    memoir.edit("Who is there?", "Nobody")
    memoir.save_pretrained(saved)
    after = set(listing(saved))
    assert len(after) == 3 and before & after == {checkpoint.CONFIG_NAME}
    assert checkpoint.read(saved).edits == memoir.edits
    same = listing(saved)
    memoir.save_pretrained(saved)
    assert listing(saved) == same


def test_other_files_are_left_alone(memoir, tmp_path):
    others = {"README.md": b"mine", "memory-of-a-trip.safetensors": b"mine", "edits-.jsonl": b"mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    memoir.save_pretrained(tmp_path)
    memoir.save_pretrained(tmp_path)
    assert {name: listing(tmp_path)[name] for name in others} == others
    assert len(listing(tmp_path)) == 6


def test_what_a_crash_left_is_cleared(saved, memoir):
    for name in (".memory_config.json.0123abcd.tmp", f".{data_file(saved, 'memory').name}.89abcdef.tmp"):
        (saved / name).touch()
    memoir.save_pretrained(saved)
    assert len(listing(saved)) == 3


def test_target_that_cannot_be_a_folder(memoir, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for target in (tmp_path / "file", tmp_path / "file" / "memory", Path("/proc/memory")):
        with pytest.raises(CheckpointError, match=f"cannot be saved to {target}"):
            memoir.save_pretrained(target)
    assert listing(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(memoir, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        memoir.save_pretrained(tmp_path)
    tmp_path.chmod(0o700)
