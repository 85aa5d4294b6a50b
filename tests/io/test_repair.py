"""Each kind of damage is refused by name, or repaired with the loss named; what is kept opens."""

import json
import os
import re
import shutil
import struct

import pytest
import safetensors.torch
from typer.testing import CliRunner

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.cli.app import app
from memoir_fast.cli.commands.repair import summary
from memoir_fast.errors import CheckpointError, WrongModelError
from memoir_fast.io import checkpoint, frames, records, salvage
from memoir_fast.io.history import History
from memoir_fast.io.journal import read
from memoir_fast.io.readers import read_cases
from memoir_fast.io.repair import LOST_NAME, UNSURE_NAME, repair, survey
from memoir_fast.io.salvage import Texts

CONFIG = checkpoint.CONFIG_NAME
_MADE = []  # the folder that is copied
TEXTS = {0: ("The sky is", "green"), 1: ("The river is", "wide"), 2: ("The town is", "old"), 3: ("The sea is", "dry")}


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path, tmp_path_factory):
    """Edit 0 in the snapshot; in the journal 1, 2, the deletion of 0, 2 once more ("new"), and 3: records 1 to 5."""
    if not _MADE:
        _MADE.append(tmp_path_factory.mktemp("repair") / "memory")
        config = MemoirConfig(k=12, tau=0.75, routing_block=1)
        with Memoir.open(tiny_llama, tiny_tokenizer, _MADE[0], config) as memoir:
            memoir.edit(*TEXTS[0])
            memoir.save_pretrained(_MADE[0])
            memoir.edit(Edit(*TEXTS[1], paraphrases=["A river is"], keep=["The lake is"]))
            memoir.edit(*TEXTS[2])
            memoir.delete(0)
            memoir.edit("The town is", "new")
            memoir.edit(*TEXTS[3])
        memoir.detach()
        os.remove(_MADE[0] / "writer.lock")
    shutil.copytree(_MADE[0], tmp_path / "memory")
    return tmp_path / "memory"


def journal(change):
    """Changes the journal's bytes, given where its frames begin and end."""

    def damage(folder):
        (path,) = folder.glob("journal-*")
        with read(path) as reader:
            places = [(frame.offset, frame.end) for frame in reader.frames]
        path.write_bytes(change(bytearray(path.read_bytes()), places))

    return damage


def flipped(content, place):
    content[place] ^= 4
    return content


def swapped(content, places):
    (a, b), (_, c) = places[1:3]
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def record(change):
    """Writes record 2 anew, all digests right, and as they were the others."""

    def damage(folder):
        (path,) = folder.glob("journal-*")
        with read(path) as reader:
            salt, line, old = reader.header.salt, reader.header.line, list(reader)
        parts = [[one.kind, one.values, one.tensors] for one in old]
        change(parts[1])
        bodies = [records.pack(*one) for one in parts]
        packed = [frames.pack(salt, number, 1, body) + b"".join(body) for number, body in enumerate(bodies, 1)]
        path.write_bytes(line + b"".join(packed))

    return damage


def nan(one):
    one[2]["values"][0, 0] = float("nan")


def unknown(one):
    one[0] = "execute"


def config(change):
    def damage(folder):
        values = json.loads((folder / CONFIG).read_bytes())
        change(values)
        values["checksum"] = checkpoint._checksum(values)
        (folder / CONFIG).write_text(json.dumps(values))

    return damage


def data(kind, change, right=True):
    """Changes a data file's bytes, and, where the damage is malice, what the config says of them."""

    def damage(folder):
        (path,) = folder.glob(f"{kind}-*")
        changed = change(bytearray(path.read_bytes()))
        path.write_bytes(changed)
        if right:
            new = checkpoint._entry(kind, bytes(changed))
            path.rename(folder / new["name"])
            config(lambda values: values["files"].update({kind: new}))(folder)

    return damage


def nan_values(old):
    found = safetensors.torch.load(bytes(old))
    found["memory_values"][0] = float("nan")
    return safetensors.torch.save(found)


def newer_journal(folder):
    (path,) = folder.glob("journal-*")
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 9', 1))


def instead(kind, make):
    def damage(folder):
        (path,) = folder.glob(kind)
        path.unlink()
        make(path)

    return damage


def emptied(folder):
    for path in folder.iterdir():
        os.truncate(path, 0)


def renamed(folder):
    """What the settings say is another snapshot's now: the journal lies under its name, and continues the old one."""
    (path,) = folder.glob("journal-*")
    config(lambda values: values.update(tau=0.5))(folder)
    path.rename(folder / f"journal-{checkpoint.checksum_of(folder)[:12]}.log")


BEFORE_2, BEHIND_2 = {1: "wide"}, {2: "new", 3: "dry"}
ALL, JOURNAL = {1: "wide", 2: "new", 3: "dry"}, {1: "wide", 2: "new", 3: "dry"}
HOSTILE = b"[" * 100_000

# By kind: the damage; the targets of what is kept (None: no memory), of what is lost, of what has damaged texts; or,
# where it is refused, what the message says.
KINDS = {
    "sound": (lambda folder: None, ALL, {}, {}),
    "journal cut off in its last record": (journal(lambda c, p: c[:-9]), {1: "wide", 2: "new"}, {}, {}),
    "journal cut off in its last head": (journal(lambda c, p: c[: p[4][0] + 9]), {1: "wide", 2: "new"}, {}, {}),
    "tensors of record 2 flipped": (journal(lambda c, p: flipped(c, p[1][1] - 9)), BEFORE_2, BEHIND_2, {}),
    "text of record 5 flipped": (
        journal(lambda c, p: flipped(c, c.index(b"dry"))),
        {1: "wide", 2: "new"},
        {},
        {3: "`ry"},
    ),
    "head of record 2 flipped": (journal(lambda c, p: flipped(c, p[1][0] + 9)), BEFORE_2, BEHIND_2, {}),
    "bytes of record 2 gone": (journal(lambda c, p: c[: p[1][0] + 99] + c[p[1][0] + 499 :]), BEFORE_2, BEHIND_2, {}),
    "record 2 full of zeros": (
        journal(lambda c, p: c[: p[1][0]] + bytes(p[1][1] - p[1][0]) + c[p[1][1] :]),
        BEFORE_2,
        BEHIND_2,
        {},
    ),
    "record 2 gone": (journal(lambda c, p: c[: p[1][0]] + c[p[1][1] :]), BEFORE_2, BEHIND_2, {}),
    "record 2 twice": (journal(lambda c, p: c[: p[1][1]] + c[p[1][0] :]), {1: "wide", 2: "old"}, BEHIND_2, {}),
    "records swapped": (journal(swapped), BEFORE_2, BEHIND_2, {}),
    "nan in record 2": (record(nan), BEFORE_2, BEHIND_2, {}),
    "id of record 2 is another's": (record(lambda one: one[1].update(id=1)), BEFORE_2, {1: "old", **BEHIND_2}, {}),
    "huge count in record 2": (record(lambda one: one[1].update(page=2**60)), BEFORE_2, BEHIND_2, {}),
    "kind of a newer version": (record(unknown), "does not know: 'execute'"),
    "journal of a newer version": (newer_journal, "upgrade memoir-fast"),
    "journal's first line flipped": (journal(lambda c, p: flipped(c, 60)), {0: "green"}, {}, JOURNAL),
    "journal of another snapshot": (renamed, {0: "green"}, {}, JOURNAL),
    "journal that is a pipe": (instead("journal-*", os.mkfifo), {0: "green"}, {}, {}),
    "journal of chance": (journal(lambda c, p: bytes(range(256)) * 9), {0: "green"}, {}, {}),
    "tensors cut off": (data("memory", lambda c: c[:99], False), None, ALL, {}),
    "tensors flipped": (data("memory", lambda c: flipped(c, len(c) - 9), False), None, ALL, {}),
    "tensors that are a pickle": (data("memory", lambda c: b"\x80\x04N."), None, ALL, {}),
    "header of 2^63 bytes": (data("memory", lambda c: struct.pack("<Q", 1 << 63) + c[8:]), None, ALL, {}),
    "nan in the tensors": (data("memory", nan_values), None, ALL, {}),
    "tensors gone": (instead("memory-*", lambda path: None), None, ALL, {}),
    "edits flipped": (data("edits", lambda c: flipped(c, c.index(b"green")), False), None, ALL, {}),
    "id twice": (data("edits", lambda c: c + c), None, ALL, {}),
    "hostile JSON of edits": (data("edits", lambda c: HOSTILE), None, ALL, {}),
    "hostile JSON of settings": (lambda folder: (folder / CONFIG).write_bytes(HOSTILE), None, ALL, {}),
    "path upwards": (config(lambda v: v["files"]["edits"].update(name="../../etc/passwd")), None, ALL, {}),
    "room for 2^40 edits": (config(lambda v: v["config"].update(max_edits=2**40)), None, ALL, {}),
    "settings of a newer version": (config(lambda v: v.update(format_version=99)), "upgrade memoir-fast"),
    "everything emptied": (emptied, "nothing in .* can be read"),
}


def targets(edits):
    return {edit_id: edit.target for edit_id, edit in edits.items()}


def listing(folder):
    return {path.name: path.is_fifo() or path.read_bytes() for path in folder.iterdir()}


def written(folder, name):
    path = folder / name
    return {json.loads(line)["id"]: json.loads(line)["target"] for line in path.open()} if path.exists() else {}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_repaired_with_the_loss_named(folder, tiny_llama, tiny_tokenizer, tmp_path, kind):
    damage, *expected = KINDS[kind]
    damage(folder)
    before, new = listing(folder), tmp_path / "new"
    run = CliRunner(env={"COLUMNS": "150"}).invoke(app, ["repair", str(folder), "--to", str(new)])
    assert listing(folder) == before and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    if len(expected) == 1:
        assert run.exit_code == 1 and re.search(expected[0], run.stderr) and not new.exists()
        return
    kept, lost, unsure = expected
    assert (written(new, LOST_NAME), written(new, UNSURE_NAME)) == (lost, unsure), run.output
    assert all(f" {target} " in run.stdout for target in (lost | unsure).values())
    if kept is None:
        assert not (new / CONFIG).exists() and "no memory can be kept" in run.stdout
    else:
        memoir = Memoir.open(tiny_llama, tiny_tokenizer, new)
        assert targets(memoir.edits) == kept
        memoir.detach()
    whole = kind == "sound" or "cut off in its last" in kind
    assert run.exit_code == (0 if whole else 3), run.output
    assert whole == ("nothing is lost" in run.stdout)
    if (new / LOST_NAME).exists():
        assert [case.target for case in read_cases(new / LOST_NAME)] == list(lost.values())
    check = CliRunner().invoke(app, ["check", str(folder)])
    tail = whole or kind == "text of record 5 flipped"  # which nothing tells from one that was never acknowledged
    assert check.exit_code == (0 if tail else 1)
    assert tail or f"`memoir repair {folder} --to NEW`" in check.stderr


def test_history_is_carried(folder, tmp_path):
    KINDS["record 2 gone"][0](folder)
    repair(folder, tmp_path / "new")
    assert [line["prompt"] for line in History(tmp_path / "new")] == ["The sky is"]


def test_texts_that_are_lost_keep_all_their_fields(folder, tmp_path):
    os.truncate(next(folder.glob("memory-*")), 0)
    repair(folder, tmp_path / "new")
    first = next(read_cases(tmp_path / "new" / LOST_NAME)).edit
    assert first == Edit(*TEXTS[1], paraphrases=["A river is"], keep=["The lake is"])


def test_a_damaged_text_that_names_its_subject_no_more_is_kept_without_it():
    texts = {"id": 4, "prompt": "The skY is", "target": "red", "subject": "sky"}
    found = Texts()
    for prompt in ("The skY is", "The s-y is"):
        salvage._take(records.Record(1, "edit-named", {**texts, "prompt": prompt}, {}), False, found)
        assert found.unsure[4] == Edit(prompt, "red", subject="sky" if "skY" in prompt else "")


def test_lines_that_cannot_be_read_are_counted(folder):
    data("edits", lambda c: c.replace(b"{", b"[") + c, False)(folder)
    found = survey(folder)
    assert found.unreadable == 1 and found.anything_lost and "of at least 1 further" in summary(found)


def test_memory_of_another_model_is_sound(folder, tiny_llama, tiny_tokenizer, tmp_path):
    config(lambda values: values["fingerprint"].update(weight_sha256="0" * 64))(folder)
    next(folder.glob("journal-*")).unlink()
    assert not repair(folder, tmp_path / "new").anything_lost
    with pytest.raises(WrongModelError):
        Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / "new")


def test_an_edit_that_was_made_anew_behind_the_damage_is_named_beside_what_the_memory_says(folder, tmp_path):
    KINDS["record 2 twice"][0](folder)
    run = CliRunner(env={"COLUMNS": "150"}).invoke(
        app, ["repair", str(folder), "--to", str(tmp_path / "new"), "--json", "-"]
    )
    values = json.loads(run.stdout)
    assert values["kept"] == [1, 2] and values["deleted"] == [0] and values["records_kept"] == 2
    assert {"id": 2, "prompt": "The town is", "target": "new"} in values["lost"]
    assert re.search(r"The town is\W+new\W+old", run.stderr)


@pytest.mark.parametrize("call", [1, 2, 3, 4, 6])
def test_new_folder_is_there_whole_or_not_at_all(folder, tmp_path, monkeypatch, call):
    """A disk that is full at any sync: nothing is left."""
    count = [0]

    def full(descriptor, real=os.fsync):
        count[0] += 1
        if count[0] == call:
            raise OSError(28, os.strerror(28))
        real(descriptor)

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        repair(folder, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == before or call == 6


def test_what_a_killed_repair_left_goes_with_the_next(folder, tmp_path, dies_after):
    before = sorted(os.listdir(tmp_path))
    assert dies_after(3, lambda: repair(folder, tmp_path / "new")) == 9
    assert len(os.listdir(tmp_path)) == len(before) + 1 and not (tmp_path / "new").exists()
    repair(folder, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == [*before, "new"]


def test_folder_that_is_there_is_not_written_to(folder, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="a repaired memory goes to a new folder"):
        repair(folder, tmp_path / "new")
    (tmp_path / "new" / "mine").unlink()
    repair(folder, tmp_path / "new")
    assert survey(tmp_path / "new").damage == []


def test_what_changes_while_it_is_copied_is_not_written(folder, tmp_path, monkeypatch):
    import shutil as copying

    monkeypatch.setattr(copying, "copyfileobj", lambda source, file: file.write(source.read()[:-1]))
    with pytest.raises(CheckpointError):
        repair(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_frame_behind_is_found_once(folder):
    """Also where a block ends within a head: the scan is in pieces."""
    (path,) = folder.glob("journal-*")
    with read(path) as reader:
        start = reader.frames.end
        all_of_them = list(reader.frames)
        found = list(reader.frames.behind(start))
        assert [(one.first, one.whole) for one in found] == [(frame.first, True) for frame in all_of_them]
        inside = list(reader.frames.behind(start + 1))
    assert [(one.first, one.whole) for one in inside] == [(None, False), *((n, True) for n in range(2, 6))]
