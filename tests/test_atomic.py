"""Sets of files that are replaced whole, also where the system has no file locks."""

import os
import re
import subprocess
import sys

import pytest

from memoir_fast.atomic import filling


def test_without_file_locks(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"  # importing it raises, as on Windows
        "import re; from pathlib import Path; from memoir_fast import atomic\n"
        "assert atomic.fcntl is None\n"
        "folder = Path(sys.argv[1]) / 'new'\n"
        "for content in (b'old', b'new'):\n"
        "    atomic.publish(folder, {f'data-{content.decode()}': content}, 'index', content, re.compile('data-.*'))\n"
        "with atomic.locked(folder, shared=True) as descriptor: assert descriptor is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert found == {"data-new": b"new", "index": b"new"}


def test_the_package_imports_without_file_locks():
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from memoir_fast import Memoir\n"
        "from memoir_fast.hf import smollm\nfrom memoir_fast.io import checkpoint\nprint(Memoir.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"Memoir\s*", done.stdout), done.stderr


def test_a_folder_that_is_filled_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), filling(target) as beside:
        (beside / "file").write_bytes(b"half")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []
    with filling(target) as beside:
        (beside / "file").write_bytes(b"whole")
        assert not target.exists()
    assert os.listdir(tmp_path) == ["new"] and (target / "file").read_bytes() == b"whole"


def test_what_killed_processes_left_of_a_folder_goes_and_what_somebody_fills_stays(tmp_path):
    target = tmp_path / "new"
    child = os.fork()
    if not child:
        with filling(target) as beside:
            (beside / "file").write_bytes(b"half")
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = os.listdir(tmp_path)
    others = [".other.01234567.tmp", ".new.0123456.tmp", ".new.01234567.tmp.mine", "new.01234567.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".new.00000000.tmp").symlink_to(tmp_path / others[0])
    (tmp_path / ".new.00000001.tmp").write_bytes(b"a file")
    with filling(target) as one:
        assert not (tmp_path / left).exists()
        with pytest.raises(OSError), filling(target) as two:
            (one / "file").write_bytes(b"one")
            raise OSError(f"{two} cannot be written")
        assert (one / "file").read_bytes() == b"one"
    kept = [*others, ".new.00000000.tmp", ".new.00000001.tmp", "new"]
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
