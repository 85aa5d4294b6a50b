"""The table of versions in docs/versions.md, made of docs/results/matrix.json, which `make matrix` writes.

A row has a part (transformers, torch, torch's headers, Python), a version, what it was run beside, a date, and either
counts of tests or whether a build succeeded; where it could not be run, the reason.
"""

import json
from pathlib import Path
from typing import Any

import page_section

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "versions.md", ROOT / "docs" / "results" / "matrix.json"
BEGIN, END = "<!-- tools/matrix.py: begin -->", "<!-- tools/matrix.py: end -->"
PARTS = ("transformers", "torch", "torch headers", "python")
NAMES = {
    "transformers": "transformers",
    "torch": "torch",
    "torch headers": "extension, headers of torch",
    "python": "Python",
}

Row = dict[str, Any]


def row(part: str, version: str, beside: dict[str, str], date: str, **outcome: Any) -> Row:
    """One row. `outcome` is passed, failed and skipped, or built (whether), or absent (why)."""
    if part not in PARTS or not ({"passed", "failed", "skipped"} <= set(outcome) or len(outcome) == 1):
        raise ValueError(f"expected a part of {PARTS} and one outcome, got {part!r} and {outcome}")
    return {"part": part, "version": version, "beside": beside, "date": date, **outcome}


def good(one: Row) -> bool:
    """Whether a row says nothing bad: what could not be run does not."""
    return one.get("failed", 0) == 0 and one.get("built", True) is True and one.get("passed", 1) > 0


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """The rows of every part that was run take the place of its old ones; of torch, which runs one release at a time,
    those of that release. Of a version that could not be run this time what was measured earlier stays, with its date.
    """
    measured = {(one["part"], minor(one)): one for one in old if "absent" not in one}
    run = {(one["part"], one["part"] == "torch" and one["version"]) for one in new}
    kept = [one for one in old if (one["part"], one["part"] == "torch" and one["version"]) not in run]
    taken = [measured.get((one["part"], minor(one)), one) if "absent" in one else one for one in new]
    return sorted(kept + taken, key=lambda one: (PARTS.index(one["part"]), numbers(one["version"])))


def minor(one: Row) -> str:
    """What a row is known by: Python by 3.12, the others by their whole version."""
    return ".".join(one["version"].split(".")[:2]) if one["part"] == "python" else one["version"]


def numbers(version: str) -> tuple[int, ...]:
    """A version as something to sort by."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def outcome(one: Row) -> str:
    """What became of a row, in words."""
    if "absent" in one:
        return f"not run: {one['absent']}"
    if "built" in one:
        return "builds and loads" if one["built"] else "**does not build**"
    failed = f"**{one['failed']} failed**" if one["failed"] else "0 failed"
    return f"{one['passed']} passed, {failed}, {one['skipped']} skipped"


def section(rows: list[Row]) -> str:
    """The text between the markers."""
    lines = ["| | version | beside | outcome | date |", "| --- | --- | --- | --- | --- |"]
    for one in rows:
        beside = ", ".join(f"{name} {version}" for name, version in one["beside"].items())
        lines.append(f"| {NAMES[one['part']]} | {one['version']} | {beside} | {outcome(one)} | {one['date']} |")
    return "\n".join(lines)


def rewritten(text: str, rows: list[Row]) -> str:
    """A page with the section between its markers replaced. ValueError where it has none."""
    return page_section.replaced(text, BEGIN, END, section(rows))


def read() -> list[Row]:
    """The rows of the committed file, none where there is no file."""
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []


def write(rows: list[Row]) -> None:
    """Writes the file and the page's table."""
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    PAGE.write_text(rewritten(PAGE.read_text(), rows))


def differs() -> bool:
    """Whether the page's table is not what the file says."""
    text = PAGE.read_text()
    return rewritten(text, read()) != text
