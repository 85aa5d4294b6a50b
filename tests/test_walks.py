"""The walks in DESIGN.md: each step names a file and what it has, and both are there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEP = re.compile(r"^\d+\. `([\w/]+\.\w+)`: `([\w.]+)`", re.MULTILINE)
WALKS = {"From an operation to its kernel": 9, "One token's way": 12, "One edit's way": 16}


def steps(title):
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(f"### {title}\n")
    return STEP.findall(rest.partition("\n#")[0])


@pytest.mark.parametrize("title", WALKS)
def test_each_step_is_there(title):
    found = steps(title)
    assert len(found) == WALKS[title]
    for path, name in found:
        assert (ROOT / path).is_file(), path
        if not path.endswith(".py"):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path} has no {name}"
            continue
        module = path.removesuffix(".py").replace("/", ".")
        value = importlib.import_module(module if module.startswith("memoir_fast") else f"memoir_fast.{module}")
        for part in name.split("."):
            value = getattr(value, part)
