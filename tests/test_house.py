"""The house in numbers: how long files are, and in how many of them an operation is named."""

import re
import subprocess
from pathlib import Path

import pytest

from memoir_fast import ops

ROOT = Path(__file__).resolve().parent.parent
LONGEST, SHORTEST, MOST_FILES = 400, 25, 12
CODE = (".py", ".cpp", ".cu", ".h", ".cuh", ".inc")
SPECIFICATION = "memoir_fast/reference/"  # an op, a file, however short: it is read beside the op
# Files that are short for a reason.
SHORT = {
    "__init__.py": "says what its folder is for",
    "tools/docstrings.py": "an extension of the site's builder",
    "tools/page_section.py": "the one way to write between a page's markers, that two tools share",
    "memoir_fast/__main__.py": "python -m memoir_fast",
    "csrc/clear_scratch.cuh": "a kernel of its own, that only one file may include",
    "memoir_fast/modules/spawned.py": "what two modules send to a process",
    "kernels/_pages.py": "what the forms of one op share",
    "memoir_fast/cli/commands/compact.py": "a command, and nothing but its options",
    "csrc/cuda_host.h": "what the torch side of the CUDA ops shares, apart from the kernels' headers",
}


def tracked(*patterns):
    run = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a git checkout: the files of the project cannot be told from others")
    return [Path(name) for name in run.stdout.splitlines() if (ROOT / name).is_file()]


def code():
    return [path for path in tracked() if path.suffix in CODE]


def test_files_are_of_one_thing():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in code()}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST}
    short = {
        path for path, lines in lengths.items() if lines < SHORTEST and not path.startswith(("tests/", SPECIFICATION))
    }
    assert short <= {path for path in short if path in SHORT or Path(path).name in SHORT}
    assert {name for name in SHORT if "/" in name} <= set(lengths), "a file that is named here is gone"


@pytest.mark.parametrize("word", sorted({name.removesuffix("_add_") for name in ops.__all__}))
def test_an_operation_is_named_in_few_files(word):
    files = tracked(":!tests", ":!docs", ":!*.md", ":!*.svg", ":!bench/results")
    found = [str(path) for path in files if re.search(rf"\b{word}\b", (ROOT / path).read_text(errors="replace"))]
    assert len(found) <= MOST_FILES, f"{word} is named in {found}"
