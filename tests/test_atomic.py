"""Sets of files that are replaced whole, also where the system has no file locks."""

import re
import subprocess
import sys


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
