"""The command line: what each command prints and writes, and which exit code says what."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from memoir_fast import RECIPES, Memoir, __version__
from memoir_fast.cli.app import app
from memoir_fast.io import checkpoint, durable

EDITS = [
    {"prompt": "The capital of France is", "target": "Rome"},
    {"prompt": "Which animal lives in the desert?", "target": "camel", "subject": "ignored"},
]


@pytest.fixture
def invoke():
    """Runs `memoir` with arguments; the result has exit_code, stdout, stderr."""
    runner = CliRunner(env={"COLUMNS": "120"})
    return lambda *arguments: runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture
def model(tiny_llama, tiny_tokenizer, tmp_path):
    """A folder with the tiny model."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def edits(tmp_path):
    """A file with two edits."""
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(edit) + "\n" for edit in EDITS) + "\n")
    return path


@pytest.fixture
def easy(monkeypatch):
    """The published recipe, short, and content with any loss."""
    monkeypatch.setitem(RECIPES, "paper", dataclasses.replace(RECIPES["paper"], steps=2, bar=100.0, prefixes=1))


@pytest.fixture
def memory(invoke, model, edits, easy, tmp_path):
    """A folder with the memory of the two edits."""
    result = invoke(
        "edit", "-m", model, "-e", edits, "-o", tmp_path / "memory", "--recipe", "paper", "--tau", 0.9, "-q"
    )
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    return tmp_path / "memory"


def said(result, code=1):
    """The one line on standard error, with which the command ended in `code`."""
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("memoir: ")
    return line


def test_help_lists_the_commands_without_loading_torch():
    code = (
        "import sys, memoir_fast.cli.app as cli; assert not {'torch', 'transformers', 'rich.table'} & set(sys.modules);"
        "print(sorted(command.name for command in cli.app.registered_commands))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"ask", "demo", "edit", "env", "inspect"} <= set(json.loads(done.stdout.replace("'", '"')))


def test_module_and_version():
    command = [sys.executable, "-m", "memoir_fast", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"memoir_fast {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["frob"], ["edit"], ["ask", "who?"], ["env", "--frob"], ["demo", "--edits", "0"], ["inspect"]]
)
def test_wrong_usage(invoke, arguments):
    assert invoke(*arguments).exit_code == 2


def test_env(invoke, tmp_path):
    result = invoke("env", "--json", tmp_path / "env.json")
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "env.json").read_text())
    for row in report["backends"]:
        assert row["op"] in result.stdout
        assert row["available"] == (row["reason"] is None)
    assert "reference" in result.stdout and report["packages"]["torch"] in result.stdout


def test_presets(invoke):
    from memoir_fast.hf.presets import PRESETS

    result = invoke("presets", "--json", "-", "-q")
    rows = {row["model_type"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 0 and set(rows) == set(PRESETS)
    assert rows["llama"]["layers"] == ["model.layers.N.mlp.down_proj"] and rows["llama"]["known"] == "tested"
    assert rows["gptj"]["depth"] == 0.75 and rows["gptj"]["k_per_input"] == 4096 / 14336
    assert len(rows["qwen2_moe"]["layers"]) == 2 and "refused" in rows["mixtral"]["known"]
    shown = invoke("presets").stdout
    assert all(kind in shown for kind in PRESETS) and "k: 0.286 of the" in shown


def test_env_tells_a_probe_that_failed(invoke, monkeypatch):
    from memoir_fast import backends

    def broken():
        raise RuntimeError("no [report] today")

    monkeypatch.setattr(backends, "report", broken)
    result = invoke("env")
    assert result.exit_code == 0 and "no [report] today" in result.stdout


def test_tune_needs_a_device_and_shows_what_it_chose(invoke, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke("tune")
    assert result.exit_code == 1 and "tuning needs a CUDA device, torch sees none" in result.stderr

    row = {"kernel": "tophash", "key": "any", "configuration": {"num_warps": 16}, "tried": 3}
    from memoir_fast.kernels import _tuning

    row |= {"microseconds": 1.25, "shipped_microseconds": 2.5}
    asked = []
    monkeypatch.setattr(_tuning, "tune", lambda ops, quick: asked.append((ops, quick)) or [row])
    result = invoke("tune", "tophash", "--quick", "--json", "-")
    assert asked == [(["tophash"], True)] and json.loads(result.stdout) == [row]


def test_edit_and_ask(invoke, memory, model, tmp_path):
    result = invoke("ask", EDITS[0]["prompt"], "-m", model, "--memory", memory, "--json", tmp_path / "answer.json")
    assert result.exit_code == 0, result.stderr
    values = json.loads((tmp_path / "answer.json").read_text())
    assert (values["edit_id"], values["edit_prompt"], values["edit_target"]) == (0, EDITS[0]["prompt"], "Rome")
    assert (values["overlap"], values["tau"]) == (1.0, 0.9)
    assert f"route: edit 0, {EDITS[0]['prompt']!r} -> 'Rome' (overlap 1.000, tau 0.9)" in result.stdout


def test_rows_that_do_not_do_what_they_may_seem_to_are_told(invoke, model, easy, tmp_path):
    rows = [EDITS[0], {**EDITS[0], "target": "Greek", "paraphrases": ["France's capital is"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    options = ["-e", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--recipe", "paper", "--tau", 0.9]
    done = invoke("edit", "-m", model, *options)
    assert "1 of them gave way to a later row of the same prompt" in done.stdout
    assert "paraphrases of 1 rows were not taught" in done.stdout
    assert "asking: 100%" in done.stderr
    done = invoke("ask", EDITS[0]["prompt"], "-m", model, "--memory", tmp_path / "out", "--bank", "acme")
    assert done.exit_code == 0 and "no edit is in the bank 'acme'" in done.stdout


def test_ask_what_no_edit_matches(invoke, memory, model):
    result = invoke("ask", "0123456789", "-m", model, "--memory", memory, "--json", "-", "-q", "--new-tokens", "3")
    values = json.loads(result.stdout)
    assert values["edit_id"] is None and values["overlap"] < 0.9
    assert values["answer"] == values["answer_without"] != ""
    assert "no edit matches" in invoke("ask", "0123456789", "-m", model, "--memory", memory).stdout


def test_json_on_standard_output_is_alone_there(invoke, memory):
    result = invoke("inspect", memory, "--json", "-")
    assert json.loads(result.stdout)["edits"] == 2
    assert "camel" in result.stderr
    result = invoke("inspect", memory, "--json", "-", "--quiet")
    assert json.loads(result.stdout)["edits"] == 2 and result.stderr == ""


def test_inspect(invoke, memory):
    result = invoke("inspect", memory)
    assert result.exit_code == 0, result.stderr
    for text in ("2 live, 0 deleted", "16 of 48 per edit", "model.layers.2.mlp.down_proj", "camel", "memoir_fast"):
        assert text in result.stdout
    assert "and 1 more" in invoke("inspect", memory, "--edits", "1").stdout


def test_edit_goes_on_from_a_memory(invoke, memory, model, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "Who wrote the play?", "target": "nobody"}))
    arguments = ["edit", "-m", model, "-e", more, "-o", memory, "--memory", memory, "--recipe", "paper"]
    result = invoke(*arguments, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 edits learned" in result.stdout
    values = json.loads((tmp_path / "result.json").read_text())
    assert (values["edits"], values["learned"], values["held"]) == (1, 1, 3)
    assert values["results"][0]["edit_id"] == 2
    saved = checkpoint.read(memory)
    assert [edit.target for edit in saved.edits.values()] == ["Rome", "camel", "nobody"]
    assert saved.tau == 0.9


def test_edit_keeps_the_folder_that_it_goes_on_from(invoke, memory, model, tmp_path, tiny_llama, tiny_tokenizer):
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "What is the colour of the sky?", "target": "Greek"}))
    before = {path.name: path.read_bytes() for path in memory.iterdir() if path.name != "writer.lock"}
    goes_on = ("edit", "-m", model, "-e", tmp_path / "more.jsonl", "--memory", memory, "-q")
    for extra in ((), ("--tau", 0.8)):
        result = invoke(*goes_on, *extra)
        assert result.exit_code == 0, result.stderr
        assert len(durable.current_edits(memory)[1]) == 3
        if not extra:  # an append, and nothing else
            assert all((memory / name).read_bytes().startswith(content) for name, content in before.items())
            (journal,) = memory.glob("journal-*.log")
            assert len(journal.read_bytes()) > len(before.get(journal.name, b""))
    assert Memoir.from_pretrained(tiny_llama, tiny_tokenizer, memory).tau == 0.8


def test_edit_needs_a_folder(invoke, model, edits, tmp_path):
    (tmp_path / "empty").mkdir()
    assert invoke("edit", "-m", model, "-e", edits).exit_code == 2
    for folder, reason in (("nothing", "is no local folder"), ("empty", "holds no memory")):
        assert reason in said(invoke("edit", "-m", model, "-e", edits, "--memory", tmp_path / folder))
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("many", [False, True])
def test_edit_shows_what_the_model_says(invoke, model, tiny_llama, tmp_path, monkeypatch, many):
    """Few edits are all shown, of many those that are not said; one that a later line replaced is not asked for."""
    tiny_llama.get_output_embeddings().weight.data *= 4  # else no hidden state of 32 numbers is sure of one token
    tiny_llama.save_pretrained(model)
    sure = dataclasses.replace(RECIPES["fast"], steps=300, learning_rate=0.1, prefixes=0, rewordings=0, questions=0)
    monkeypatch.setitem(RECIPES, "fast", sure)
    monkeypatch.setattr("memoir_fast.evaluation.answers.says", lambda answer, target: answer.startswith("Rome"))
    if many:
        monkeypatch.setattr("memoir_fast.cli.commands.edit.SHOWN", 1)
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({**EDITS[0], "target": "Greek"}, *EDITS)))
    arguments = ["edit", "-m", model, "-e", path, "-o", tmp_path / "out", "--recipe", "fast", "--tau", 0.9]
    result = invoke(*arguments, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, (result.stdout, result.stderr)
    values = json.loads((tmp_path / "result.json").read_text())
    assert values["said"] == 1
    assert [one["says_target"] for one in values["results"]] == [None, True, False]
    assert values["results"][0]["says"] is None and values["results"][1]["says"].startswith("Rome")
    assert values["results"][2]["says"].startswith("camel")
    assert "asked freely, the model says 1 of 2 targets" in result.stdout
    assert ("what the model says now" in result.stdout, "edits that the model does not say" in result.stdout) == (
        not many,
        many,
    )
    assert ("The capital of France is" in result.stdout) is not many


def test_a_given_tau_ends_calibration(invoke, memory, model, edits, tiny_llama, tiny_tokenizer, tmp_path):
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, memory)
    memoir.calibrate()
    memoir.save_pretrained(memory)
    assert checkpoint.read(memory).calibration is not None
    arguments = ["edit", "-m", model, "-e", edits, "-o", memory, "--memory", memory, "--recipe", "paper"]
    assert invoke(*arguments, "--tau", "0.8").exit_code == 0
    saved = checkpoint.read(memory)
    assert (saved.tau, saved.calibration, saved.config.tau) == (0.8, None, 0.8)


def test_exit_code_where_an_edit_was_not_learned(invoke, model, edits, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "paper", dataclasses.replace(RECIPES["paper"], steps=1, bar=0.0, prefixes=1))
    result = invoke("edit", "-m", model, "-e", edits, "-o", tmp_path / "out", "--recipe", "paper")
    assert result.exit_code == 3
    assert "0 of 2 edits learned" in result.stdout and "not learned below the loss threshold" in result.stdout
    assert len(checkpoint.read(tmp_path / "out").edits) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "target": ', "line 3: the file ends within a record"),
        ('{"prompt": "a"}', "line 2 (row 2): the field 'target' is missing, got ['prompt']"),
        ("[1, 2]", "line 2: expected an object, got '[1, 2]"),
        ('{"prompt": "", "target": "a"}', "line 2 (row 2): the field 'prompt' is empty"),
        ('{"prompt": "a", "target": 3}', "line 2 (row 2): the field 'target' must be text, got int"),
        ('"\xff"', "line 2: byte 0xff is not UTF-8"),
    ],
)
def test_broken_line(invoke, memory, model, tmp_path, line, reason):
    """Nothing is edited, not even what stands on the lines before."""
    path = tmp_path / "broken.jsonl"
    path.write_bytes(json.dumps(EDITS[0]).encode() + b"\n" + line.encode("latin-1") + b"\n")
    before = {path.name: path.read_bytes() for path in memory.iterdir()}
    message = said(invoke("edit", "-m", model, "-e", path, "-o", memory, "--memory", memory))
    assert f"{path}, {reason}" in message
    assert {path.name: path.read_bytes() for path in memory.iterdir()} == before


def test_request_that_cannot_be_learned(invoke, memory, model, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(EDITS[0]) + "\n" + json.dumps({"prompt": "word " * 300, "target": "a"}))
    before = {path.name: path.read_bytes() for path in memory.iterdir()}
    message = said(invoke("edit", "-m", model, "-e", path, "-o", memory, "--memory", memory))
    assert "the model's context holds 256" in message
    assert {path.name: path.read_bytes() for path in memory.iterdir()} == before


def test_files_that_are_not_there(invoke, model, edits, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "No such file" in said(invoke("edit", "-m", model, "-e", nowhere, "-o", tmp_path / "out"))
    assert f"there is no folder {nowhere}" in said(invoke("inspect", nowhere))
    assert f"there is no folder {nowhere}" in said(invoke("ask", "who?", "-m", model, "--memory", nowhere))
    assert "nowhere" in said(invoke("ask", "who?", "-m", nowhere, "--memory", nowhere))
    assert f"there is no folder {nowhere}" in said(invoke("env", "--json", nowhere / "env.json"))
    assert f"{tmp_path} is a folder" in said(invoke("env", "--json", tmp_path))
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "empty.jsonl is empty" in said(invoke("edit", "-m", model, "-e", tmp_path / "empty.jsonl", "-o", nowhere))


def test_settings_are_refused_before_the_model_is_loaded(invoke, edits, tmp_path):
    arguments = ["edit", "-m", tmp_path / "no model", "-e", edits]
    assert "is a file" in said(invoke(*arguments, "-o", edits / "memory"))
    out = ["-o", tmp_path / "out"]
    assert "tau must lie in (0, 1]" in said(invoke(*arguments, *out, "--tau", "1.5"))
    assert "recipe must be one of" in said(invoke(*arguments, *out, "--recipe", "cake"))
    assert "dtype must be one of" in said(invoke(*arguments, *out, "--dtype", "int8"))
    assert "device 'abacus' cannot be used" in said(invoke(*arguments, *out, "--device", "abacus"))
    assert invoke("ask", " ", "-m", "x", "--memory", "y").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_damaged_memory(invoke, memory, model):
    (path,) = memory.glob("memory-*")
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    for arguments in (["inspect", memory], ["ask", "who?", "-m", model, "--memory", memory]):
        assert f"{path} is damaged" in said(invoke(*arguments))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_finished(invoke, model, edits, tmp_path, monkeypatch, easy, number):
    edit, before = Memoir.edit, signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupted(self, wanted, **options):
        edit(self, wanted[:1], **options)
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("the signal was passed over")

    monkeypatch.setattr(Memoir, "edit", interrupted)
    result = invoke("edit", "-m", model, "-e", edits, "-o", tmp_path / "out", "--recipe", "paper")
    signal.signal(signal.SIGINT, interrupts)
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN, "it is not as before"
    assert result.exit_code == 130 and result.stderr.endswith("memoir: interrupted\n")
    assert "1 finished edits are saved" in result.stdout
    assert [edit.target for edit in checkpoint.read(tmp_path / "out").edits.values()] == ["Rome"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_kill_keeps_what_is_finished(
    invoke, model, edits, memory, tmp_path, monkeypatch, goes_on, tiny_llama, tiny_tokenizer
):
    """A folder as it is between two edits is what a kill would leave."""
    finish, (out, killed) = Memoir._finish, (tmp_path / "out", tmp_path / "killed")

    def finished(self, last):
        if not killed.exists():
            shutil.copytree(out, killed)
        return finish(self, last)

    monkeypatch.setattr(Memoir, "_finish", finished)
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "Who wrote the play?", "target": "nobody"}))
    options = ["-e", tmp_path / "more.jsonl", "--memory", memory] if goes_on else ["-e", edits, "--recipe", "paper"]
    result = invoke("edit", "-m", model, *options, "-o", out, "-q")
    assert result.exit_code == 0, result.stderr
    held = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, killed).edits.values()
    assert [one.target for one in held] == (["Rome", "camel", "nobody"] if goes_on else ["Rome"])
    assert len(checkpoint.read(out).edits) == (3 if goes_on else 2)


def test_of_what_was_not_begun_nothing_is_left(invoke, model, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 300, "target": "a"}))
    assert "context holds 256" in said(invoke("edit", "-m", model, "-e", path, "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_traceback_on_request(invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMOIR_FAST_TRACEBACK", "1")
    result = invoke("inspect", tmp_path / "nowhere")
    assert isinstance(result.exception, checkpoint.CheckpointError)


def test_reader_that_goes_away():
    """`memoir env | head -1` ends quietly."""
    command = f"{sys.executable} -m memoir_fast --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0 and "Traceback" not in done.stderr
