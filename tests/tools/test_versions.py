"""The table of docs/versions.md is what the committed results say, and every row of them is whole."""

import re

import pytest

DATE = "2026-01-02"


def test_page_agrees_with_the_results(tool):
    assert tool("matrix").main(["--check"]) == 0


def test_results_are_whole(tool):
    versions = tool("versions")
    rows = versions.read()
    assert {one["part"] for one in rows} == set(versions.PARTS)
    for one in rows:
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.post\d+)?", one["version"]), one
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", one["date"]), one
        assert versions.good(one), f"a failure is committed: {one}"
    matrix = tool("matrix")
    assert {matrix.OLDEST, matrix.BETWEEN} <= {one["version"] for one in rows if one["part"] == "transformers"}
    assert set(matrix.OLD_TORCHES) <= {one["version"] for one in rows if one["part"] == "torch headers"}
    assert matrix.OLD_TORCHES[0] in {one["version"] for one in rows if one["part"] == "torch"}
    minors = [versions.minor(one) for one in rows if one["part"] == "python"]
    assert minors == list(tool("pythons").MINORS)


def test_oldest_is_what_the_package_allows(tool):
    lines = (tool("versions").ROOT / "pyproject.toml").read_text()
    assert f'"transformers>={tool("matrix").OLDEST}"' in lines


@pytest.fixture
def rows(tool):
    row = tool("versions").row
    return [
        row("transformers", "5.9.0", {"torch": "2.13.0"}, DATE, passed=7, failed=0, skipped=1),
        row("transformers", "5.10.1", {"torch": "2.13.0", "Python": "3.11"}, DATE, passed=6, failed=2, skipped=0),
        row("torch headers", "2.10.0", {"CUDA": "none"}, DATE, built=False),
        row("python", "3.10.13", {}, DATE, absent="no torch"),
        row("python", "3.12.1", {}, DATE, passed=3, failed=0, skipped=0),
    ]


def test_section_says_what_happened(tool, rows):
    lines = tool("versions").section(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == f"| transformers | 5.9.0 | torch 2.13.0 | 7 passed, 0 failed, 1 skipped | {DATE} |"
    assert "| torch 2.13.0, Python 3.11 | 6 passed, **2 failed**, 0 skipped |" in lines[3]
    assert lines[4] == f"| extension, headers of torch | 2.10.0 | CUDA none | **does not build** | {DATE} |"
    assert "not run: no torch" in lines[5]


def test_what_is_good(tool, rows):
    good = tool("versions").good
    assert [good(one) for one in rows] == [True, False, False, True, True]
    nothing_ran = tool("versions").row("transformers", "5.0.0", {}, DATE, passed=0, failed=0, skipped=4)
    assert not good(nothing_ran)


def test_parts_that_were_not_run_stay(tool, rows):
    row = tool("versions").row
    counts = {"passed": 1, "failed": 0, "skipped": 0}
    new = [row("transformers", version, {}, "2027-01-01", **counts) for version in ("6.0", "5.10.1")]
    found = [(one["part"], one["version"], one["date"][:4]) for one in tool("versions").merged(rows, new)]
    assert found == [
        ("transformers", "5.10.1", "2027"),
        ("transformers", "6.0", "2027"),
        ("torch headers", "2.10.0", "2026"),
        ("python", "3.10.13", "2026"),
        ("python", "3.12.1", "2026"),
    ]


def test_what_cannot_be_run_now_keeps_what_was_measured(tool, rows):
    row = tool("versions").row
    new = [row("python", minor, {}, "2027-01-01", absent="not here") for minor in ("3.10.14", "3.12.9", "3.13.0")]
    found = [one for one in tool("versions").merged(rows, new) if one["part"] == "python"]
    assert [one["version"] for one in found] == ["3.10.14", "3.12.1", "3.13.0"]
    assert found[1]["passed"] == 3 and found[1]["date"] == DATE


def test_a_release_of_torch_takes_the_place_of_its_own_row_alone(tool):
    row, counts = tool("versions").row, {"passed": 1, "failed": 0, "skipped": 0}
    old = [row("torch", version, {}, DATE, **counts) for version in ("2.10.0", "2.15.0")]
    old += [row("torch headers", "2.15.0", {}, DATE, built=True)]
    new = [row("torch", "2.15.0", {"Python": "3.13.0"}, "2027-01-01", **counts)]
    found = tool("versions").merged(old, new)
    assert found == [old[0], new[0], old[2]]
    assert "| torch | 2.15.0 | Python 3.13.0 | 1 passed," in tool("versions").section(found)


@pytest.mark.parametrize("outcome", [{}, {"passed": 1, "failed": 0}])
def test_half_a_row_is_refused(tool, outcome):
    with pytest.raises(ValueError, match="one outcome"):
        tool("versions").row("python", "3.12", {}, DATE, **outcome)
    with pytest.raises(ValueError, match="a part of"):
        tool("versions").row("pypy", "3.12", {}, DATE, absent="why")


def test_page_without_markers_is_refused(tool):
    with pytest.raises(ValueError, match="lacks"):
        tool("versions").rewritten("no markers", [])


def test_write_replaces_only_what_lies_between_the_markers(tool, rows, tmp_path, monkeypatch):
    versions = tool("versions")
    page = tmp_path / "versions.md"
    page.write_text(f"before\n{versions.BEGIN}\nold\n{versions.END}\nafter\n")
    monkeypatch.setattr(versions, "PAGE", page)
    monkeypatch.setattr(versions, "RESULTS", tmp_path / "matrix.json")
    assert versions.differs()
    versions.write(rows)
    assert versions.read() == rows and not versions.differs()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
