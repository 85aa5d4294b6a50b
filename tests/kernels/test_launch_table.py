"""The table of launch configurations: what overrides what, and what a damaged table does."""

import json
import logging

import pytest
from memoir_fast.kernels import _launch

SHIPPED = json.loads(_launch._SHIPPED.read_text())


@pytest.fixture
def user_table(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    monkeypatch.setenv("MEMOIR_FAST_LAUNCH_TABLE", str(path))

    def write(content: object) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        _launch.forget()

    yield write
    monkeypatch.undo()
    _launch.forget()


def test_the_special_overrides_the_general(user_table):
    user_table(
        {
            "*": {"tophash": {"D64": {"num_warps": 1}}},
            "GPU A": {"tophash": {"*": {"num_warps": 2}, "D64": {"num_warps": 16}}},
        }
    )
    shipped = SHIPPED["*"]["tophash"]["*"]
    assert _launch.lookup("tophash", "GPU B", ("D63",)) == shipped
    assert _launch.lookup("tophash", "GPU B", ("D64",)) == {**shipped, "num_warps": 1}
    assert _launch.lookup("tophash", "GPU A", ("D63",)) == {**shipped, "num_warps": 2}
    assert _launch.lookup("tophash", "GPU A", ("D64", "4 bytes")) == {**shipped, "num_warps": 16}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"*": 3}', '{"*": {"tophash": []}}', '{"*": {"tophash": {"*": {"num_warps": "x"}}}}']
)
def test_a_damaged_table_is_passed_over_with_a_warning(user_table, caplog, content):
    user_table(content)
    with caplog.at_level(logging.WARNING, "memoir_fast"):
        config = _launch.lookup("tophash", "*", ())
    assert config == SHIPPED["*"]["tophash"]["*"]
    assert "is passed over" in caplog.text


def test_no_table_is_no_matter(user_table):
    _launch.forget()
    assert _launch.lookup("tophash", "*", ()) == SHIPPED["*"]["tophash"]["*"]


@pytest.mark.parametrize("device", [name for name in SHIPPED if name != "*"] or ["*"])
def test_shipped_entries_name_known_kernels_and_parameters(device):
    for kernel, entries in SHIPPED[device].items():
        known = {name for entry in SHIPPED["*"][kernel].values() for name in entry}
        assert all(set(entry) <= known for entry in entries.values())
