"""`memoir log`, `check`, `export` and `diff`: what a folder holds, its journal included, without a model."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.cli.app import app
from memoir_fast.io.readers import read_cases

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)


@pytest.fixture
def invoke():
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    """A memory with one edit in its snapshot, and in its journal another, a deletion and a threshold."""
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", config) as memoir:
        memoir.edit("The sky is", "green")
        memoir.save_pretrained(tmp_path / "memory")
        memoir.edit(Edit("The river [b]is", "wide", paraphrases=("A river is",), keep=("The lake is",)))
        memoir.edit("The town is", "old")
        memoir.delete(0)
        memoir.calibrate(["What is it?"] * 20, 0.4)
    memoir.detach()
    return tmp_path / "memory"


def test_log_lists_all_that_ever_came(invoke, folder):
    done = invoke("log", folder, "--json", "-")
    assert done.exit_code == 0, done.stderr
    records = json.loads(done.stdout)["records"]
    assert [one["kind"] for one in records] == ["edit", "edit", "edit", "delete", "calibration"]
    assert records[1]["prompt"] == "The river [b]is" and records[3]["ids"] == [0] and records[0]["time"] > 1e9
    assert [one["number"] for one in records] == [1, 2, 3, 4, 5]
    assert "1: The river [b]is -> wide" in done.stderr and "the snapshot holds 1 edits; 4 records" in done.stderr
    done = invoke("log", folder, "--last", 2, "--json", "-")
    assert json.loads(done.stdout)["records"] == records[3:] and "and 3 before these" in done.stderr
    assert "before these" not in invoke("log", folder).stdout
    with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write("a line of a stranger's\n")
    assert "1 lines of" in invoke("log", folder).stdout


def test_of_a_long_life_the_end_is_shown(invoke, folder):
    lines = [{"kind": "delete", "journal": "ab", "sequence": one, "ids": [one], "time": 1e6} for one in range(70)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = invoke("log", folder)
    assert "and 24 before these; --last N shows more" in done.stdout and done.stdout.count("1970-") == 46
    assert invoke("log", folder, "--last", 60).stdout.count("1970-") == 56
    done = invoke("log", folder, "--json", "-")
    assert len(json.loads(done.stdout)["records"]) == 74 and "and 24 before these" in done.stderr


def test_inspect_shows_what_loads(invoke, folder, tiny_llama, tiny_tokenizer):
    done = invoke("inspect", folder, "--json", "-")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["id"], one["target"]) for one in found["texts"]] == [(1, "wide"), (2, "old")]
    assert "2 live, 1 deleted, 4 records since the snapshot" in done.stderr and "green" not in done.stderr
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folder)
    status, weight = memoir.status(), memoir.layer.memory.weight
    assert (found["edits"], found["deleted"], found["tau"]) == (status.edits, status.deleted, status.tau)
    assert found["tau"] != 0.9, "the journal's threshold"
    assert found["columns_used"] == int(weight.ne(0).any(dim=1).sum())


def test_check_goes_through_all_of_it(invoke, folder):
    done = invoke("check", folder, "--json", "-")
    assert done.exit_code == 0 and json.loads(done.stdout)["edits"] == 2
    assert "2 edits: 1 in the snapshot, 4 records since; all are whole" in done.stderr
    (journal,) = folder.glob("journal-*.log")
    content = journal.read_bytes()
    journal.write_bytes(content[:-5])
    done = invoke("check", folder, "--json", "-")
    assert done.exit_code == 0 and json.loads(done.stdout)["bytes_dropped"] > 0
    damaged = bytearray(content)
    damaged[len(content) // 3] ^= 1
    journal.write_bytes(damaged)
    done = invoke("check", folder)
    assert done.exit_code == 1 and journal.name in done.stderr
    journal.write_bytes(content)
    (folder / "history.jsonl").write_text("no line of a history\n")
    done = invoke("check", folder, "--json", "-")
    assert done.exit_code == 0 and json.loads(done.stdout)["history_unreadable"] == 1
    assert "1 lines of" in done.stderr and "no answer depends on them" in done.stderr


def test_export_is_what_edit_takes(invoke, folder, tmp_path):
    done = invoke("export", folder, "--to", tmp_path / "edits.jsonl")
    assert done.exit_code == 0 and done.stdout == "", done.stderr
    found = [case.edit for case in read_cases(tmp_path / "edits.jsonl")]
    river = Edit("The river [b]is", "wide", paraphrases=("A river is",), keep=("The lake is",))
    assert found == [river, Edit("The town is", "old")]
    assert invoke("export", folder).stdout == (tmp_path / "edits.jsonl").read_text(encoding="utf-8")


def test_diff_compares_edits_with_their_journals(invoke, folder, tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folder)
    memoir.edit("The town is", "new")
    memoir.edit("The sky is", "red")
    memoir.save_pretrained(tmp_path / "other")
    done = invoke("diff", folder, tmp_path / "other", "--json", "-")
    values = json.loads(done.stdout)
    assert values["same"] == 1 and values["rows"] == [
        {"bank": "", "prompt": "The town is", "a": "old", "b": "new"},
        {"bank": "", "prompt": "The sky is", "a": None, "b": "red"},
    ]
    assert "2 edits differ" in done.stderr and "more" not in done.stderr
    monkeypatch.setattr("memoir_fast.cli.commands.diff.SHOWN", 1)
    assert "and 1 more; --json lists all" in invoke("diff", folder, tmp_path / "other").stdout
    assert "0 edits differ" in invoke("diff", folder, folder).stdout


def test_banks_are_taught_asked_for_and_shown(invoke, saved_model, tmp_path):
    rows = [{"prompt": "The sky is", "target": "red", "bank": "acme"}, {"prompt": "The sky is", "target": "old"}]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "memory"
    taught = ("edit", "-m", saved_model, "-e", tmp_path / "edits.jsonl", "--tau", 0.9)
    done = invoke(*taught, "-o", folder, "--bank", "globex", "--json", "-")
    assert [one["bank"] for one in json.loads(done.stdout)["results"]] == ["acme", "globex"], done.stderr
    asked = [("--bank", "acme"), ("--bank", "globex"), ("--bank", "acme", "--bank", "other"), ()]
    ask = ("ask", "The sky is", "-m", saved_model, "--memory", folder, "--json", "-")
    found = [json.loads(invoke(*ask, *banks).stdout) for banks in asked]
    assert [one["edit_bank"] for one in found] == ["acme", "globex", "acme", None]
    assert "'red' (overlap 1.000, tau 0.9), of the bank 'acme'" in invoke(*ask, "--bank", "acme").stderr
    shown = invoke("inspect", folder)
    assert "bank" in shown.stdout and "globex" in shown.stdout
    exported = [json.loads(line) for line in invoke("export", folder).stdout.splitlines()]
    times = [one.pop("taught_at") for one in exported]
    assert times[0] <= times[1] and exported == [{"id": 0, **rows[0]}, {"id": 1, **rows[1], "bank": "globex"}]
    assert invoke(*taught, "-o", tmp_path / "other", "-q").exit_code in (0, 3)
    differ = json.loads(invoke("diff", folder, tmp_path / "other", "--json", "-").stdout)
    assert differ["same"] == 1 and [(row["bank"], row["a"], row["b"]) for row in differ["rows"]] == [
        ("globex", "old", None),
        ("", None, "old"),
    ]


def test_log_tells_the_bank(invoke, tiny_llama, tiny_tokenizer, tmp_path):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", config) as memoir:
        memoir.edit(Edit("The sky is", "green", bank="acme", subject="sky"))
        memoir.delete_bank("acme")
    done = invoke("log", tmp_path / "memory", "--json", "-")
    assert [one["kind"] for one in json.loads(done.stdout)["records"]] == ["edit-named", "delete"]
    assert "0: The sky is -> green (subject sky, bank acme)" in done.stderr


def test_author_and_source_are_taken_and_shown(invoke, saved_model, tmp_path):
    rows = [{"prompt": "The sky is", "target": "red", "author": "Jo"}, {"prompt": "The town is", "target": "old"}]
    rows[1]["subject"] = "town"
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    taught = ("edit", "-m", saved_model, "-e", tmp_path / "edits.jsonl", "-o", tmp_path / "memory", "--tau", 0.9, "-q")
    done = invoke(*taught, "--author", "Max", "--source", "a wire")
    assert done.exit_code in (0, 3), done.stderr
    shown = invoke("inspect", tmp_path / "memory", "--json", "-")
    texts = json.loads(shown.stdout)["texts"]
    assert [(one["author"], one["source"]) for one in texts] == [("Jo", "a wire"), ("Max", "a wire")]
    assert [one["subject"] for one in texts] == ["", "town"] and "subject" in shown.stderr
    assert texts[0]["taught_at"] > 1e9 and "taught at" in shown.stderr and "Max" in shown.stderr
    invoke("export", tmp_path / "memory", "--to", tmp_path / "again.jsonl")
    again = [case.edit for case in read_cases(tmp_path / "again.jsonl")]
    assert [(one.author, one.source, one.taught_at, one.subject) for one in again] == [
        ("Jo", "a wire", None, ""),
        ("Max", "a wire", None, "town"),
    ]
    assert invoke(*taught, "--author", "J\u202eo").exit_code == 1


def test_undo_takes_the_last_changes_back(invoke, folder):
    done = invoke("undo", folder, "-n", 2, "--json", "-")
    assert done.exit_code == 0, done.stderr
    values = json.loads(done.stdout)
    assert [one["kind"] for one in values["undone"]] == ["delete", "calibration"] and values["edits"] == 3
    assert "the memory holds 3 edits" in done.stderr and "delete" in done.stderr
    shown = invoke("log", folder)
    assert "undo" in shown.stdout and "delete 0; calibration" in shown.stdout
    assert invoke("check", folder).exit_code == 0
    done = invoke("undo", folder, "-n", 3)
    assert done.exit_code == 1 and "the journal of" in done.stderr and "has 2" in done.stderr
    assert invoke("undo", folder.parent).exit_code == 1 and not (folder.parent / "writer.lock").exists()
