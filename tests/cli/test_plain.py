"""What a folder's texts, or a model's, do to a terminal: nothing. What JSON says of them is all of it."""

import dataclasses
import json
import re
import shutil
import time
import unicodedata
import warnings
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.cli import app as command_line
from memoir_fast.cli.commands import ask, eval
from memoir_fast.cli.plain import cell, escaped, moment, plain
from memoir_fast.evaluation import tables
from memoir_fast.io import checkpoint
from memoir_fast.io.journal import Journal
from memoir_fast.io.writer_lock import WriterLock

STEERING = "\x1b[2J \x1b]0;title\x07 \x00 \x08 \r \x0b \x7f \x85 \x9b2J \u202e \u2066 \u2028 \u200f"
EVIL = f"The sky{STEERING} is"
_MADE = []  # the folder that is copied
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)


def steers(text):
    return [one for one in text if one not in "\n\t" and unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")] + [
        one
        for one in text
        if unicodedata.bidirectional(one) in ("RLO", "LRO", "RLE", "LRE", "PDF", "LRI", "RLI", "FSI")
    ]


def test_every_character():
    """What steers is replaced, one for one, and nothing else is."""
    for number in (*range(0x10000), *range(0x1F000, 0x1FB00), *range(0xE0000, 0xE0100)):
        text = chr(number)
        if number in (0x061C, 0x200E, 0x200F, 0x2069) or steers(text):
            assert plain(text) == "\ufffd", hex(number)
            assert json.loads(escaped(json.dumps(text, ensure_ascii=False))) == text
            assert not steers(escaped(json.dumps(text, ensure_ascii=False)))
        else:
            assert plain(text) == text, hex(number)


def test_texts_stay_readable():
    kept = "Kyōto 🗼 日本 👩‍🚀 می‌خواهم\n\tשלום"
    assert plain(kept) == kept and escaped(kept) == kept
    assert plain("a\x1b[2Jb") == "a\ufffd[2Jb"
    assert cell("[bold]a\x07").plain == "[bold]a\ufffd"


@pytest.fixture
def invoke():
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(command_line.app, [str(one) for one in arguments])


@pytest.fixture
def model(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folders(tiny_llama, tiny_tokenizer, tmp_path, tmp_path_factory):
    """Two memories whose texts steer, in snapshot and journal; they differ in a target. Made once, then copied."""
    if not _MADE:
        made = tmp_path_factory.mktemp("steering")
        for name in ("one", "other"):
            config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")
            with Memoir.open(tiny_llama, tiny_tokenizer, made / name, config) as memoir:
                memoir.edit(EVIL, f"green{STEERING}{name}")
                memoir.save_pretrained(made / name)
                if name == "one":
                    memoir.edit(Edit(f"The river{STEERING}", STEERING + "wide", (f"A river{STEERING}",)))
            memoir.detach()
        _MADE.append(made)
    shutil.copytree(_MADE[0], tmp_path / "made")
    return tmp_path / "made" / "one", tmp_path / "made" / "other"


def change_config(folder, change):
    path = folder / checkpoint.CONFIG_NAME
    values = json.loads(path.read_bytes())
    change(values)
    values["checksum"] = checkpoint._checksum(values)
    path.write_text(json.dumps(values))


def test_no_command_prints_what_steers(invoke, folders, model, tmp_path):
    one, other = folders
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": EVIL, "target": STEERING + "wide"}))
    calls = [
        ["inspect", one],
        ["log", one],
        ["check", one],
        ["diff", one, other],
        ["export", one],
        ["ask", EVIL, "-m", model, "--memory", one, "--new-tokens", 2],
        ["merge", "-m", model, "--memory", one, "--with", other, "--out", tmp_path / "merged"],
        ["edit", "-m", model, "-e", more, "-o", tmp_path / "taught", "--memory", other, "--recipe", "paper"],
    ]
    for call in calls:
        done = invoke(*call)
        assert done.exit_code in (0, 3), (call, done.output)
        assert not steers(done.stdout + re.sub(r"\r(editing|asking)", "", done.stderr)), call  # a bar's own
        assert any(word in done.stdout for word in ("sky", "river", "whole")), call
    assert json.loads(invoke("export", other).stdout)["prompt"] == EVIL
    said = invoke("inspect", one, "--json", "-")
    assert not steers(said.stdout) and json.loads(said.stdout)["texts"][0]["prompt"] == EVIL


def test_settings_and_errors_steer_as_little(invoke, folders):
    one, other = folders

    def change(values):
        values["package_version"] = STEERING
        values["fingerprint"] |= {"model_type": STEERING, "layer": STEERING, "weight_sha256": STEERING}
        values["config"]["layer"] = STEERING

    change_config(other, change)
    done = invoke("inspect", other)
    assert done.exit_code == 0 and not steers(done.output)
    change_config(one, lambda values: values["files"]["edits"].update(name=STEERING))
    change_config(other, lambda values: values["config"].update(recipe=STEERING))
    for folder in (one, other):
        done = invoke("inspect", folder)
        assert done.exit_code == 1 and "memory_config.json is malformed" in done.stderr and not steers(done.output)


def test_warnings_steer_as_little(monkeypatch):
    """Those of the command line; the library leaves them as they are."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(command_line, "app", lambda **_: None)
    assert steers(warnings.formatwarning(STEERING, UserWarning, "file", 1))
    command_line.main()
    said = warnings.formatwarning(STEERING, UserWarning, "file", 1)
    assert "UserWarning" in said and not steers(said)


@pytest.mark.parametrize("seconds", [None, "now", [1], 1e300, -1e300, float("nan")])
def test_log_of_records_that_say_anything(seconds):
    assert moment(seconds) == "no time" and moment(time.time())[:2] == "20"


def test_log_of_records_without_their_values(invoke, folders):
    saved = checkpoint.read(folders[1])
    with WriterLock(folders[1]) as lock, Journal(lock, saved.checksum) as journal:
        for kind in ("edit", "delete", "calibration", "other"):
            journal.append(kind, {"time": "long ago", "tau": "much", "kind": "lie"})
    done = invoke("log", folders[1])
    assert done.exit_code == 0 and "4 records have come since" in done.stdout and "lie" not in done.stdout


def test_no_table_cuts_off_what_it_shows():
    """`grid` makes them all."""
    for path in Path(command_line.__file__).parent.rglob("*.py"):
        assert path.name == "plain.py" or "Table(" not in path.read_text(), f"{path} makes a table without `grid`"


def test_an_evaluation_is_legible_in_eighty_columns():
    figures = dict.fromkeys(tables._SHARES, 0.123) | {"perplexity": None, "cases": 7, "conflict_free": None}
    result = {"edits": 7, "all_rows": figures, "seconds_per_edit": 1.25, "conflicts": [], "tau": 0.5, "irrelevant": 2}
    result |= {"baselines": {"unedited": figures, "ft": figures}, "false_matches": 0, "learned": 7, "unusable": []}
    result |= {"at_end": figures}
    screen = Console(width=80, file=StringIO())
    eval._show(screen, result)
    shown = screen.file.getvalue()
    for text in (
        "edited",
        "edited, after the last edit",
        "unedited",
        "ft",
        *tables._SHARES.values(),
        "0.123",
        "s / edit",
        "1.25",
    ):
        assert re.search(rf"│ +{re.escape(text)} +│|┃ +{text} +┃", shown), text


def test_an_overlap_above_tau_that_is_no_match_is_explained():
    values = {"prompt": "a", "answer": "b", "answer_without": "b", "edit_id": None, "tau": 0.58}
    for overlap in (0.5, 0.75):
        screen = Console(width=120, file=StringIO())
        ask._show(screen, {**values, "overlap": overlap}, [])
        assert ("not every prompt above it matches" in screen.file.getvalue()) == (overlap == 0.75)


def test_a_terminal_that_lacks_letters_stops_nothing(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", config) as memoir:
        memoir.edit("The désert is", "🐪 land")
    for further in ([], ["--json", "-", "-q"]):
        bytes_of = BytesIO()
        monkeypatch.setattr("sys.stdout", TextIOWrapper(bytes_of, encoding="ascii", write_through=True))
        monkeypatch.setattr("sys.argv", ["memoir", "log", str(tmp_path / "memory"), *further])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        assert ended.value.code == 0
        if further:
            assert json.loads(bytes_of.getvalue())["records"][0]["prompt"] == "The désert is"
        else:
            assert b"d\\xe9sert is -> \\U0001f42a land" in bytes_of.getvalue()
