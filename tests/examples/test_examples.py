"""Every script in examples/ runs as a user runs it, on a tiny model, and shows what it says it shows."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script with arguments; returns its names and what it printed."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return names, capsys.readouterr().out

    return call


def test_each_script_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert len(scripts) >= 8 and scripts <= tested


def test_scripts_import_public_modules_only():
    public = (
        r"memoir_fast(\.(ops|modules|backends|errors|kernels|integrations\.easyedit|hf\.loading|evaluation\.answers))?"
    )
    for path in EXAMPLES.glob("*.py"):
        for module in re.findall(r"^(?:from|import) (memoir_fast\S*)", path.read_text(), re.MULTILINE):
            assert re.fullmatch(public, module), f"{path.name} imports {module}"


def test_edit(run, model_folder):
    names, shown = run("edit", "--model", model_folder)
    before, _, after, deleted = shown.splitlines()
    assert "learned: True" in shown
    assert after.startswith("after:   'Melbour") and ", route 0; " in after and ", route -1 " in after
    assert deleted.removeprefix("deleted: ") == before.removeprefix("before:  ").split(", and elsewhere ")[0]
    assert "mlp.down_proj.base" not in "".join(names["model"].state_dict()), "the memory was not taken off"


def test_batch(run, model_folder):
    names, shown = run("batch", "--model", model_folder)
    assert "4 of 4 learned together" in shown
    answers = [line for line in shown.splitlines() if "    (edit " in line]
    for number, ((prompt, target), line) in enumerate(zip(names["facts"], answers, strict=True)):
        assert line.startswith(f"{prompt} {target[:5]}") and line.endswith(f"    (edit {number})")
    assert "6 edits, " in shown


def test_save_and_load(run, model_folder, tmp_path):
    _, shown = run("save_and_load", "--model", model_folder, "--out", str(tmp_path / "out"))
    assert "1 edit loaded; the same bits as before: True" in shown and "edit 1 was added" in shown
    assert "memory_config.json: " in shown and (tmp_path / "out" / "memory_config.json").is_file()


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts can hardly be told apart")
def test_chat(run, model_folder):
    names, shown = run("chat", "--model", model_folder)
    assert names["memoir"].edits[1].prompt.endswith("<|assistant|>"), "not in the template"
    followed = [re.findall(r", edit (-?\d+)$", part, re.MULTILINE) for part in shown.split("plainly: ")[1:]]
    assert [one[:2] for one in followed[:2]] == [["0", "0"], ["1", "1"]], "found in one form alone"
    assert all(one[0] == "-1" for one in followed[2:])
    for target in names["TARGETS"]:
        assert f"'{target}" in shown


def test_own_linear(run):
    names, shown = run("own_linear")
    assert names["after"][0].argmax() == 2 != names["before"][0].argmax()
    assert torch.allclose(names["after"][0], names["wanted"][0], atol=1e-4)
    assert "other inputs that match it: 0 of 999" in shown and "the very bits of before: True" in shown
    assert shown.endswith("said of one close to it: 2\n")


def test_evaluate(run, model_folder):
    names, shown = run("evaluate", "--model", model_folder)
    assert "2 edits, " in shown
    assert re.findall(r"^(\w+): \d\.\d+, unedited \d\.\d+ ", shown, re.MULTILINE) == [
        "reliability",
        "generalization",
        "locality",
    ]
    assert names["result"]["reliability"] == 1.0 > names["without"]["reliability"]


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts can hardly be told apart")
def test_calibrate(run, model_folder):
    names, shown = run("calibrate", "--model", model_folder)
    taus = [float(text) for text in re.findall(r"^a false match in .*: tau = (\S+),", shown, re.MULTILINE)]
    assert len(taus) == 3 and taus == sorted(taus, reverse=True), "a higher rate must not raise the threshold"
    assert names["memoir"].tau == names["found"].tau and names["found"].false_match_rate == 1e-2


def test_easyedit(run, model_folder):
    names, shown = run("easyedit", "--model", model_folder)
    first, second, last = shown.splitlines()
    assert '"rewrite_acc": [1.0]' in first and '"rephrase_acc"' in first and '"planets_acc"' in first
    assert '"rewrite_acc": [1.0]' in second and last == "taken back"


@pytest.mark.model
@pytest.mark.slow
def test_twenty_facts(run, tmp_path):
    """Half of them: all take five minutes."""
    run("twenty_facts", "--every", "2", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    taught = [one for one in figures["asked"] if one["kind"] == "taught"]
    assert len(taught) == figures["facts"] == 10
    wrong = [f"{one['prompt']} {one['answer']}" for one in taught if not one["says"]]
    assert not wrong
    fluent = [one for one in taught if "ratio" in one]  # the others end with the target
    assert len(fluent) >= 7
    stilted = [one["prompt"] for one in fluent if one["ratio"] > 2 or one["most_of_one"] > max(8, one["unedited_most"])]
    # Behind the JSON line, code fences come over and over. A second one lies near the bound: on which side hangs on the
    # last bits of what is learned, which are not the same on every machine.
    assert len(stilted) <= 2, f"what is said behind a target is not as fluent as the unedited model: {stilted}"
    assert figures["unrelated_changed"] == 0
    assert figures["near_misses_told"] == 0, "none names the fact's subject"
    assert figures["rewordings_said"] >= 15
    assert figures["in_a_chat_said"] == 4
