"""The demonstration, on a tiny random model: what it reports is what is so."""

import dataclasses
import io
import json
import subprocess

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

from memoir_fast import RECIPES, MemoirConfig
from memoir_fast.cli import demo, demo_screen
from memoir_fast.cli.app import app
from memoir_fast.cli.demo_screen import Shown
from memoir_fast.hf import routing
from memoir_fast.hf.answer import Answer
from memoir_fast.hf.routing import Route
from memoir_fast.io.facts import facts
from memoir_fast.modules.naming import SPELLINGS, TOKENS

FIELDS = [
    "model",
    "edits",
    "reliability",
    "generalization",
    "locality",
    "seconds_per_edit",
    "reload_equal",
    "delete_restores",
]


@pytest.fixture
def model(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """A folder with the tiny model, for which edits are learned without prefixes."""
    tiny_llama.get_output_embeddings().weight.data *= 4  # else no hidden state of 32 numbers is sure of one token
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    attach = demo.Memoir.attach
    recipe = dataclasses.replace(
        RECIPES["fast-stop"], prefixes=0, rewordings=0, questions=0, steps=300, learning_rate=0.1
    )
    config = MemoirConfig(recipe=recipe, background=16, tau=0.9, k=24)
    monkeypatch.setattr(demo.Memoir, "attach", lambda model, tokenizer, _: attach(model, tokenizer, config))
    return tmp_path / "model"


def run(*arguments):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["demo", *map(str, arguments)])


def test_demo(model, tmp_path, monkeypatch):
    """Also where the working folder has a memoir_fast of its own, as a clone has."""
    (tmp_path / "memoir_fast").mkdir()
    (tmp_path / "memoir_fast" / "__init__.py").write_text("raise ImportError('the memoir_fast of the working folder')")
    monkeypatch.chdir(tmp_path)
    result = run("-m", model, "--edits", 2, "--json", tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert result.exit_code == 0, (result.stdout, result.stderr, figures)
    assert figures["false_match_rate"] == 5e-3 and figures["tau"] != 0.9, "the threshold is calibrated"
    assert list(figures)[: len(FIELDS)] == FIELDS
    assert (figures["model"], figures["edits"]) == (str(model), 2)
    assert figures["reload_equal"] is True and figures["delete_restores"] is True
    for name in ("reliability", "generalization", "locality", "paraphrases_routed"):
        assert 0 <= figures[name] <= 1
    assert figures["seconds_per_edit"] > 0
    own = 4 * (4 + 1 + 1 + 2)  # 48 bits in 4 words, a page, a threshold, two lengths
    code = 4 * (48 + 3)  # of 1,536 bits, its edit, threshold and room
    assert figures["bytes_per_edit"] == own + code + 4 * SPELLINGS * TOKENS
    assert (figures["dtype"], figures["threads"]) == ("float32", torch.get_num_threads())
    for text in (facts()[0].prompt, facts()[1].target, "the same bits", "edit deleted"):
        assert text in result.stdout
    assert (figures["exact_match"], figures["routes_changed"]) == (1.0, 0)
    assert [one.startswith(fact.target) for one, fact in zip(figures["said"], facts()[:2], strict=True)] == [True, True]
    assert "It worked: asked freely, the model says 2 of 2 facts" in " ".join(result.stdout.split())
    kinds = ["edit"] * 2 + ["paraphrase"] * 2 + ["freer words"] * 2 + ["unrelated"] * 2
    assert [one["kind"] for one in figures["shown"]] == kinds, "no chat without a template, no neighbour of fact three"
    assert figures["freer"] == [one["right"] for one in figures["shown"] if one["kind"] == "freer words"]
    assert (figures["in_a_chat"], figures["kept"], figures["neighbours"]) == ([], [], [])
    assert "the model has no chat template" in result.stdout


def test_a_chat_and_neighbours_are_shown(model, monkeypatch, tmp_path):
    """Asked in the template, shown without it; a neighbour is right where the unedited model's answer stays."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    tokenizer.save_pretrained(model)
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    asked = []
    answer = demo.answer
    monkeypatch.setattr(demo, "answer", lambda *call: asked.append(call[2]) or answer(*call))
    result = run("-m", model, "--edits", 4, "--json", tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    (chat,) = (one for one in figures["shown"] if one["kind"] == "in a chat")
    first = facts()[0]
    assert chat["prompt"] == first.prompt and asked.count(f"<|user|>{first.prompt}</s>") == 2
    assert figures["in_a_chat"] == [chat["right"]] == [chat["after"].startswith(first.target)]
    near = [one for one in figures["shown"] if one["kind"] in ("kept", "neighbour")]
    assert [(one["kind"], one["prompt"]) for one in near] == [
        ("kept", facts()[2].neighbour),
        ("neighbour", facts()[3].neighbour),
    ]
    assert figures["kept"] == [True] and near[0]["before"] == near[0]["after"]
    assert figures["neighbours"] == [near[1]["before"] == near[1]["after"]]
    shown = " ".join(result.stdout.split())
    assert "1 of 1 questions that an edit keeps answered as before" in shown
    assert f"{sum(figures['neighbours'])} of 1 other questions about another subject answered as before" in shown


@pytest.mark.parametrize(
    ("target", "after", "right"),
    [("Lyon", "Lyon, of course", True), ("Lyon", "old", False), ("", "old", True), ("", "Lyon", False)],
)
def test_what_is_not_as_it_should_be_is_marked(target, after, right):
    row = Shown("kind", "What?", target, "old", after, Route(-1, 0.25))
    assert row.right is right
    screen = Console(width=160, record=True, file=io.StringIO())
    demo_screen.answers(screen, [row])
    cells = [cell.strip() for cell in screen.export_text().splitlines()[3].split("│")[1:-1]]
    assert cells == ["kind", "What?", target or "-", "old", after, "yes" if right else "NO", "none (0.25)"]


def test_answers_that_leave_their_edit_are_noticed(model, monkeypatch, tmp_path):
    """Where no cache is found, every decode step is taken for a new prompt: teacher forcing alone sees nothing."""
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    monkeypatch.setattr(routing, "find_cache", lambda _: None)
    monkeypatch.setattr("memoir_fast.core.edited_model.prove", lambda *_: None)  # it would refuse the model
    result = run("-m", model, "--edits", 2, "--json", tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["reliability"] == 1.0 and figures["exact_match"] < 0.9 and figures["routes_changed"] == 2
    assert result.exit_code == 1
    last = " ".join(result.stdout.split()).split("It did not work: ")[1]
    assert last.startswith(
        "only 0 of 2 facts are what the model says when it is asked; 2 of 2 answers did not follow their edit"
    )
    assert "left its edit" in result.stdout, "the table says which"


def test_a_route_that_changes_is_noticed_where_the_answer_is_right(model, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    monkeypatch.setattr(demo.Memoir, "followed", lambda self, cache: [-1])
    result = run("-m", model, "--edits", 1, "--json", tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert (figures["exact_match"], figures["routes_changed"], result.exit_code) == (1.0, 1, 1)
    last = " ".join(result.stdout.split()).split("It did not work: ")[1]
    assert last == "1 of 1 answers did not follow their edit from the prompt to the end."


@pytest.mark.parametrize(("share", "worked"), [(29 / 32, True), (28 / 32, False)])
def test_nine_in_ten_must_be_said(share, worked):
    rest = {"routes_changed": 0, "reload_equal": True, "delete_restores": True}
    assert demo.verdict({"edits": 32, "exact_match": share, **rest})[0] is worked


def test_what_is_not_said_is_shown(model, monkeypatch):
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    monkeypatch.setattr(demo, "generated", lambda model, tokenizer, *_: Answer("something else", None))
    result = run("-m", model, "--edits", 1)
    assert result.exit_code == 1
    assert "not said freely" in result.stdout and "something else" in result.stdout


def test_quiet_demo_prints_json_alone(model, monkeypatch):
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    result = run("-m", model, "--edits", 1, "--json", "-", "--quiet")
    assert json.loads(result.stdout)["edits"] == 1
    assert result.stderr == ""


@pytest.mark.parametrize("broken", ["_reloads_equal", "_delete_and_compare"])
def test_exit_code_where_the_demo_does_not_hold(model, monkeypatch, broken):
    for name in ("_reloads_equal", "_delete_and_compare"):
        monkeypatch.setattr(demo, name, lambda *_, name=name: name != broken)
    result = run("-m", model, "--edits", 1)
    assert result.exit_code == 1
    assert ("DIFFERENT" in result.stdout, "NOT the old answer" in result.stdout) == (
        broken == "_reloads_equal",
        broken == "_delete_and_compare",
    )


def test_reload_that_differs_is_noticed(model, monkeypatch):
    """Whoever loads it sees a memory that lacks what the edit wrote."""
    save = demo.Memoir.save_pretrained

    def forgetful(self, folder):
        kept = self.layer.memory.weight.clone()
        self.layer.memory.weight.zero_()
        save(self, folder)
        self.layer.memory.weight.copy_(kept)

    def in_this_process(command, **_):
        demo.write_logits(*command[4:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo.Memoir, "save_pretrained", forgetful)
    monkeypatch.setattr(demo.subprocess, "run", in_this_process)
    result = run("-m", model, "--edits", 1)
    assert result.exit_code == 1 and "DIFFERENT" in result.stdout


def test_new_process_that_fails_says_why(model, monkeypatch):
    monkeypatch.setattr(demo, "_RELOAD", "raise SystemExit('no more memory')")
    result = run("-m", model, "--edits", 1)
    assert result.exit_code == 1
    assert "the new process that loads the memory failed: no more memory" in result.stderr


def test_delete_that_does_not_restore_is_noticed(model, monkeypatch):
    monkeypatch.setattr(demo, "_reloads_equal", lambda *_: True)
    monkeypatch.setattr(demo.Memoir, "delete", lambda self, edit_id: None)
    result = run("-m", model, "--edits", 1)
    assert result.exit_code == 1 and "NOT the old answer" in result.stdout


def test_more_edits_than_there_are_facts(model):
    result = run("-m", model, "--edits", 97)
    assert result.exit_code == 1
    assert "edits must lie in 1 .. 96, the facts that come with the package, got 97" in result.stderr
