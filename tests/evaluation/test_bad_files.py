"""`memoir eval` on files that are broken: file, line and field are named, and older reports stay as they are."""

import json

import pytest
from typer.testing import CliRunner

from memoir_fast.cli.app import app
from memoir_fast.evaluation.run import Settings, load_data

RECORD = {
    "subject": "Peru",
    "src": "What is the capital of Peru?",
    "rephrase": "Which city is Peru's capital?",
    "alt": "Cusco",
    "answers": ["Lima"],
    "loc": "nq question: who wrote the play",
    "loc_ans": "nobody knows",
}
BROKEN = 731


def broken(record):
    """1,000 rows, the 731st of which is `record`; a line each."""
    rows = [RECORD] * (BROKEN - 1) + [record] + [RECORD] * (1000 - BROKEN)
    return b"[\n" + b",\n".join(json.dumps(row).encode() for row in rows) + b"\n]\n"


def without(name):
    return {key: value for key, value in RECORD.items() if key != name}


@pytest.fixture
def older(tmp_path):
    """Reports of an earlier evaluation."""
    files = [tmp_path / "out.json", tmp_path / "out.html", tmp_path / "plots" / "roc.png"]
    files[-1].parent.mkdir()
    for file in files:
        file.write_text(f"older {file.name}")
    return files


def memoir_eval(data, folder, *more):
    """The command, with the name of a model that does not exist: files are read before it is looked for."""
    options = ["-m", "no-such-model", "-d", data, "-n", 1000, "--run", folder / "run", "--json", folder / "out.json"]
    options += ["--html", folder / "out.html", "--plots", folder / "plots", *more]
    done = CliRunner().invoke(app, ["eval", *map(str, options)])
    return done.exit_code, "".join(done.output.split())


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(broken(RECORD)[:100_000], "the file ends within a record: is it half downloaded?", id="half"),
        pytest.param(broken(RECORD)[:-3], "the list is not closed", id="almost-whole"),
        pytest.param(
            b"<!doctype html><title>404</title>", "line 1: expected an object, got '<!doctype html>", id="error-page"
        ),
        pytest.param(b"", "is empty", id="empty-file"),
        pytest.param(
            broken(without("rephrase")), "line 732 (row 731): the field 'rephrase' is missing", id="missing-field"
        ),
        pytest.param(broken({**RECORD, "alt": ""}), "line 732 (row 731): the field 'alt' is empty", id="empty-target"),
        pytest.param(
            broken({**RECORD, "alt": "  "}), "line 732 (row 731): the field 'alt' is empty", id="blank-target"
        ),
        pytest.param(
            broken({**RECORD, "alt": "Pe?u"}).replace(b"Pe?u", b"Pe\xfcu"),
            "line 732: byte 0xfc is not UTF-8",
            id="latin-1",
        ),
    ],
)
def test_data(older, tmp_path, raw, message):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    data = tmp_path / "data.json"
    data.write_bytes(raw)
    code, output = memoir_eval(data, tmp_path)
    assert code == 1 and squeezed(message) in output and squeezed(str(data)) in output, output
    assert [file.read_text() for file in older] == [f"older {file.name}" for file in older]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", [slice(0, 100_000), slice(0, -3)])
def test_a_file_cut_off_behind_the_rows_taken(older, tmp_path, cut):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    data = tmp_path / "data.json"
    data.write_bytes(broken(RECORD)[cut])
    code, output = memoir_eval(data, tmp_path, "-n", 3)
    assert code == 1 and squeezed(str(data)) in output, output
    assert "halfdownloaded?" in output or "thelistisnotclosed" in output
    assert [file.read_text() for file in older] == [f"older {file.name}" for file in older]


@pytest.mark.parametrize(
    ("option", "name", "raw", "message"),
    [
        ("--irrelevant", "more.txt", b"What time is it?\nAnd in Per\xfa?\n", "line 2: byte 0xfa is not UTF-8"),
        ("--irrelevant", "more.txt", b"\n \n", "is empty"),
        ("--irrelevant", "more.jsonl", b'{"question": "who?", "answer": ["me"]}\n{"question": "wh', "half downloaded"),
        ("--text", "text.txt", b"Running text. \xff", "byte 0xff is not UTF-8"),
        ("--text", "missing.txt", None, "missing.txt"),
    ],
)
def test_further_files(older, tmp_path, option, name, raw, message):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    data = tmp_path / "data.json"
    data.write_bytes(broken(RECORD))
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    code, output = memoir_eval(data, tmp_path, option, tmp_path / name)
    assert code == 1 and squeezed(message) in output and squeezed(str(tmp_path / name)) in output, output
    assert [file.read_text() for file in older] == [f"older {file.name}" for file in older]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("record", [without("alt"), RECORD | {"alt": " "}])
def test_unusable_rows_can_be_left_out(tmp_path, monkeypatch, record):
    data = tmp_path / "data.json"
    data.write_bytes(broken(record))
    read = load_data(Settings("no-such-model", data, edits=1000, skip_unusable=True))
    assert len(read.cases) == 999 and BROKEN not in {case.row for case in read.cases}
    (why,) = read.unusable
    assert f"(row {BROKEN})" in why and "alt" in why and str(data) in why

    def absent(*_):
        raise OSError("the model is asked for")

    monkeypatch.setattr("memoir_fast.hf.loading.load_model", absent)
    code, output = memoir_eval(data, tmp_path, "--skip-unusable")
    assert code == 1 and "themodelisaskedfor" in output, output


def test_a_file_that_is_cut_off_is_refused_all_the_same(tmp_path):
    data = tmp_path / "data.json"
    data.write_bytes(broken(RECORD)[:100_000])
    with pytest.raises(ValueError, match="half downloaded"):
        load_data(Settings("no-such-model", data, skip_unusable=True))


def test_a_file_without_a_usable_row_is_refused(tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps([RECORD | {"alt": ""}] * 3))
    with pytest.raises(ValueError, match="none of the 3 rows looked at can be used"):
        load_data(Settings("no-such-model", data, skip_unusable=True))
