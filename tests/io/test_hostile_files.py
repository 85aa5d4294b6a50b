"""Files of a memory that are links, pipes, or those of another memory; and a memory without codes."""

import json
import os
import random
import re
import shutil
import threading
from contextlib import suppress

import pytest
import safetensors.torch
import torch

from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint, durable
from memoir_fast.io.journal import journal_path
from memoir_fast.io.without_model import without_model

CONFIG = checkpoint.CONFIG_NAME
MEMORY, EDITS = r"memory-\w{12}\.safetensors", r"edits-\w{12}\.jsonl"


def state(folder, kind, **changes):
    """Changes what the config says of a data file."""
    values = json.loads((folder / CONFIG).read_bytes())
    values["files"][kind].update(changes)
    values["checksum"] = checkpoint._checksum(values)
    (folder / CONFIG).write_text(json.dumps(values))


def test_threshold_of_nothing(saved):
    """Every prompt would follow the edit."""
    (path,) = saved.glob("memory-*")
    tensors = safetensors.torch.load(path.read_bytes()) | {"min_overlap": torch.zeros(3).int()}
    new = checkpoint._entry("memory", content := safetensors.torch.save(tensors))
    (saved / new["name"]).write_bytes(content)
    state(saved, "memory", **new)
    with pytest.raises(CheckpointError, match=f"{MEMORY}.*min_overlap"):
        checkpoint.read(saved)


def test_bytes_of_chance(saved):
    """Bytes changed, moved, doubled and left out in either file, and the digests made right: refused, or harmless."""
    draw, loaded = random.Random(5), 0
    files = {kind: next(saved.glob(f"{kind}-*")).read_bytes() for kind in ("memory", "edits")}
    for _ in range(300):
        kind = draw.choice(list(files))
        content = bytearray(files[kind])
        header = 8 + int.from_bytes(content[:8], "little") if kind == "memory" else len(content)
        for _ in range(draw.randint(1, 3)):
            at, other, length = draw.randrange(header), draw.randrange(len(content)), draw.randint(1, 8)
            taken = [draw.randbytes(length), content[other : other + length], b""]
            content[at : at + draw.choice((0, length))] = draw.choice(taken)
        new = checkpoint._entry(kind, bytes(content))
        (saved / new["name"]).write_bytes(content)
        state(saved, kind, **new)
        try:
            assert list(checkpoint.read(saved).edits) == [0, 2]
            loaded += 1
        except CheckpointError as error:
            assert re.search(f"{MEMORY}|{EDITS}", str(error))
        state(saved, kind, **checkpoint._entry(kind, files[kind]))
    assert 10 < loaded < 150


def test_data_of_another_memory(saved, memoir, tmp_path):
    """What belongs to a later state, or to another memory, is missing under the name that is asked for."""
    memoir.edit("Who is there?", "Nobody")
    memoir.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / CONFIG, saved)
    with pytest.raises(CheckpointError, match=rf"{MEMORY} is missing"):
        checkpoint.read(saved)


def test_link_out_of_the_folder(saved, tmp_path):
    """Is followed, as the hub's own cache has such; what it leads to has the digest that is stated, or is not told."""
    (tmp_path / "secret").write_text("the password")
    (path,) = saved.glob("edits-*")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    for size in (path.stat().st_size, 7):
        state(saved, "edits", size=size)
        with pytest.raises(CheckpointError, match=rf"{EDITS} is damaged") as caught:
            checkpoint.read(saved)
        assert "password" not in str(caught.value)


@pytest.mark.parametrize("kind", [CONFIG, "edits-*", "memory-*"])
def test_pipes_are_not_waited_for(saved, kind):
    (path,) = saved.glob(kind)
    path.unlink()
    os.mkfifo(path)
    errors = []
    reader = threading.Thread(
        target=lambda: errors.append(pytest.raises(CheckpointError, checkpoint.read, saved)), daemon=True
    )
    reader.start()
    reader.join(5)
    waits = reader.is_alive()
    while reader.is_alive():  # so that it ends
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        reader.join(0.01)
    assert not waits and f"{path} cannot be read: it must be a file, and is a pipe" in str(errors[0].value)


@pytest.mark.parametrize("kind", [CONFIG, "edits-*", "memory-*", "journal-*"])
@pytest.mark.parametrize(
    ("make", "what"), [(lambda path: path.symlink_to("/dev/zero"), "device"), (os.mkdir, "folder")]
)
def test_what_is_no_file_is_refused_by_name(saved, kind, make, what):
    journal_path(saved, checkpoint.checksum_of(saved)).touch()
    (path,) = saved.glob(kind)
    path.unlink()
    make(path)
    for read in (durable.read_pair, durable.current_edits):
        with pytest.raises(CheckpointError, match=f"{path} cannot be read: it must be a file, and is a {what}"):
            read(saved)


def test_settings_without_an_end(saved):
    """A file of any size takes nothing of the disk, and would take all of the memory."""
    os.truncate(saved / CONFIG, 1 << 40)
    with pytest.raises(CheckpointError, match=f"{CONFIG} cannot be read: expected at most"):
        checkpoint.read(saved)


def test_tensors_of_chance_are_used(saved):
    """Numbers of the tensors changed, and the digests made right: refused, or searched and read within their bounds.

    `tests/native/sanitize.sh` runs it with a watched extension.
    """
    draw, used, name = random.Random(6), 0, next(saved.glob("memory-*"))
    content = name.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    x = torch.randn(4, 5, 48)
    for _ in range(120):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(start, len(content))
            changed[at : at + 4] = draw.choice([draw.randbytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80", bytes(4)])
        changed = changed[: len(content)]
        new = checkpoint._entry("memory", bytes(changed))
        (saved / new["name"]).write_bytes(changed)
        state(saved, "memory", **new)
        try:
            layer = without_model(checkpoint.read(saved)).layer
        except CheckpointError as error:
            assert re.search(f"{MEMORY}|{saved}", str(error))
            continue
        layer.tau = 0.01  # so that all follow some edit
        with torch.no_grad():
            layer.base.weight.zero_()
            layer(x)
        layer.store.match(layer.store.masks)
        used += 1
    assert 20 < used < 110
