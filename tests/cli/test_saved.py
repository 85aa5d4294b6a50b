"""`memoir refresh`, `compact` and `merge` change and save a saved memory; `memoir edit` leaves another's alone."""

import dataclasses
import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.cli.app import app
from memoir_fast.errors import LockedError
from memoir_fast.hf import loading
from memoir_fast.io import checkpoint

FACTS = [(f"The number {number} is", ["Rome", "camel"][number % 2]) for number in range(4)]


@pytest.fixture
def invoke():
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture
def saved(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """Folders with the tiny model and with a memory of four edits on two pages, the first of them deleted."""
    easy = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=0, rewordings=0, questions=0, bar=100.0)
    monkeypatch.setitem(RECIPES, "fast", easy)
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    config = MemoirConfig(tau=0.9, k=16, background=8, page_edits=2)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit(FACTS, progress=False)
    memoir.delete(0)
    memoir.save_pretrained(tmp_path / "memory")
    return tmp_path


def _options(saved, *more):
    return ("-m", saved / "model", "--memory", saved / "memory", "--json", "-", *more)


def test_refresh_teaches_what_has_faded(invoke, saved):
    done = invoke("refresh", *_options(saved, "--out", saved / "new", "--turns", 1))
    assert done.exit_code == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["taught_again"] == len(values["results"]) == values["learned"] and values["edits"] == 3
    assert f"saved in {saved / 'new'}" in done.stderr and (saved / "new").is_dir()
    assert "looking: 100%" in done.stderr


def test_what_was_not_learned_is_an_exit_code(invoke, saved, monkeypatch):
    hard = dataclasses.replace(RECIPES["fast"], bar=1e-9)
    monkeypatch.setitem(RECIPES, "fast", hard)
    done = invoke("compact", *_options(saved))
    assert done.exit_code == 3 and json.loads(done.stdout)["learned"] == 0


def test_a_recipe_that_there_is_not_is_refused_though_nothing_has_faded(invoke, saved, monkeypatch):
    monkeypatch.setattr(Memoir, "faded", lambda self, **_: [])
    done = invoke("refresh", *_options(saved, "--recipe", "cake"))
    assert done.exit_code == 1 and "recipe must be one of" in done.stderr


def test_where_there_is_nothing_to_do_no_bar_is_shown(invoke, saved):
    assert invoke("compact", *_options(saved, "--out", saved / "new")).exit_code == 0
    done = invoke("compact", "-m", saved / "model", "--memory", saved / "new")
    assert done.exit_code == 0 and done.stderr == "" and "0 of 3 edits taught again" in done.stdout


def test_compact_takes_pages_with_residue_apart(invoke, saved):
    done = invoke("compact", *_options(saved))
    assert done.exit_code == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["taught_again"] == 1 and values["results"][0]["edit_id"] == 1 and values["pages"] == 2
    assert checkpoint.read(saved / "memory").tensors["page"].tolist() == [-1, 1, 0, 0]


def test_merge_lists_conflicts_and_takes_the_rest(invoke, saved, tiny_tokenizer):
    other = Memoir.from_pretrained(_plain(saved), tiny_tokenizer, saved / "memory")
    other.edit([(FACTS[1][0], "Greek"), ("The river is", "wide")], progress=False)
    other.save_pretrained(saved / "other")
    done = invoke("merge", *_options(saved, "--with", saved / "other", "--prefer", "this", "--out", saved / "both"))
    assert done.exit_code == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["conflicts"] == [{"bank": "", "prompt": FACTS[1][0], "this": "camel", "other": "Greek"}]
    assert values["added"] == [4] and values["same"] == [2, 3] and values["edits"] == 4
    assert "two targets of one prompt: this won" in done.stderr
    edits = checkpoint.read(saved / "both").edits
    assert edits[1].target == "camel" and edits[4].target == "wide"


def test_a_memory_of_the_hub_needs_a_place_to_be_saved(invoke, saved):
    for command in ("refresh", "compact"):
        done = invoke(command, "-m", saved / "model", "--memory", "someone/memory")
        assert done.exit_code == 1 and "someone/memory is no local folder; name one with --out" in done.stderr


def _plain(saved):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(saved / "model", dtype=torch.float32)


def test_others_wait_until_a_command_is_done(invoke, saved, tiny_tokenizer, monkeypatch):
    """A command has the folder open from when it reads it, so what others acknowledge is not written over."""
    other, refused = _plain(saved), []

    def meanwhile(memoir, *_, **__):
        with pytest.raises(LockedError):
            Memoir.open(other, tiny_tokenizer, saved / "memory")
        refused.append(True)
        return [memoir.edit("Told meanwhile", "Rome")]

    monkeypatch.setattr(Memoir, "refresh", meanwhile)
    done = invoke("refresh", *_options(saved))
    assert done.exit_code == 0 and refused, done.stderr
    with Memoir.open(other, tiny_tokenizer, saved / "memory") as memoir:
        assert memoir.edits.id_of("Told meanwhile") == 4


@pytest.mark.parametrize("command", ["refresh", "compact"])
@pytest.mark.parametrize("when", ["nothing was done", "something was", "another memory is there"])
def test_a_new_folder_has_what_was_done_before_an_interrupt(invoke, saved, tiny_tokenizer, monkeypatch, command, when):
    out, there = saved / "new", when == "another memory is there"
    if there:
        shutil.copytree(saved / "memory", out)

    let_go, close = [], Memoir.close

    def closed(memoir):
        let_go.append(out.exists())
        close(memoir)

    def stopped(memoir, **_):
        if when != "nothing was done":
            memoir.edit(FACTS[2][0], "Greek")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Memoir, command, stopped)
        patched.setattr(Memoir, "close", closed)
        done = invoke(command, *_options(saved, "--out", out))
    assert done.exit_code == 130, done.stderr
    assert out.exists() == (when != "nothing was done")
    assert let_go[-1] == out.exists(), "it went while nobody else could open it"
    assert (f"what was done is saved in {out}" in done.stderr) == (when == "something was")
    if out.exists():
        with Memoir.open(_plain(saved), tiny_tokenizer, out) as memoir:
            assert memoir.edits[2].target == ("Rome" if there else "Greek") and sorted(memoir.edits) == [1, 2, 3]


def test_a_memory_that_came_meanwhile_is_not_written_over(invoke, saved, monkeypatch):
    """Between the look at the folder and the first save there."""
    out, load = saved / "out", Memoir.from_pretrained

    def loaded(*args, **kwargs):
        shutil.copytree(saved / "memory", out)
        return load(*args, **kwargs)

    monkeypatch.setattr(Memoir, "from_pretrained", loaded)
    (saved / "one.jsonl").write_text(json.dumps({"prompt": "The river is", "target": "wide"}))
    done = invoke("edit", *_options(saved, "-e", saved / "one.jsonl", "-o", out))
    assert done.exit_code == 1 and "out holds a memory now, which others have saved there meanwhile" in done.stderr
    assert len(checkpoint.read(out).edits) == 3


def test_what_another_saved_meanwhile_stays(invoke, saved, monkeypatch):
    """The folder was not there when the command began, and is not its own when it fails."""
    out, load = saved / "out", loading.load_model

    def loaded(*args):
        shutil.copytree(saved / "memory", out)
        return load(*args)

    monkeypatch.setattr(loading, "load_model", loaded)
    (saved / "long.jsonl").write_text(json.dumps({"prompt": "word " * 300, "target": "a"}))
    result = invoke("edit", "-m", saved / "model", "-e", saved / "long.jsonl", "-o", out)
    assert result.exit_code and "context holds 256" in result.stderr
    assert len(checkpoint.read(out).edits) == 3
