"""The site's pages: links that leave docs/, and errors that are told by their text."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(tool):
    pytest.importorskip("mkdocs", reason="the site is built by mkdocs, the extra `docs`")
    return tool("pages")


@pytest.mark.parametrize(
    "source, place, given, expected",
    [
        ("docs/chats.md", "chats.md", "[a](your-model.md#the-layer)", "[a](your-model.md#the-layer)"),
        ("docs/chats.md", "chats.md", "[a](../DESIGN.md#files)", "[a](project/design.md#files)"),
        ("docs/results/README.md", "results/README.md", "[a](../../bench/NOTES.md)", "[a](../project/benchmarks.md)"),
        (
            "DESIGN.md",
            "project/design.md",
            "[a](README.md), [b](docs/index.md#x)",
            "[a](../index.md), [b](../index.md#x)",
        ),
        ("README.md", "index.md", "![a](bench/plots/cpu-search.svg)", "![a](plots/cpu-search.svg)"),
        ("bench/NOTES.md", "project/benchmarks.md", "[a [b]](results/static.md) c", "a [b] c"),
        ("docs/versions.md", "versions.md", "[a](results/matrix.json)", "a"),
        ("DESIGN.md", "project/design.md", "[a](https://x.y/z.md) [b](#c)", "[a](https://x.y/z.md) [b](#c)"),
        ("DESIGN.md", "project/design.md", "[a](no/such.md)", "[a](no/such.md)"),
        ("DESIGN.md", "project/design.md", "`[a](README.md)`", "`[a](README.md)`"),
        (
            "DESIGN.md",
            "project/design.md",
            "```\n[a](README.md)\n```\n[a](README.md)",
            "```\n[a](README.md)\n```\n[a](../index.md)",
        ),
    ],
)
def test_links(pages, source, place, given, expected):
    assert pages.bent(given, source, place) == expected


def test_site_builds_without_a_warning(tmp_path):
    """As `make docs` does: every link holds, every public name is found."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason=f"the site is built by {name}, the extra `docs`")
    # not --quiet: with it, mkdocs counts no warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    assert 'id="memoir_fast.Memoir.edit"' in (tmp_path / "api" / "memoir.html").read_text()
    assert 'id="memoir_fast.ops.tophash.tophash"' in (tmp_path / "api" / "ops.html").read_text()
    examples = (tmp_path / "examples.html").read_text()
    assert examples.count("parse_args") >= 7 and "--8&lt;--" not in examples
    for page in tmp_path.rglob("*.html"):
        asked = re.findall(r'(?:src|<link[^>]* href)="(https?:[^"]*)"', page.read_text())
        assert not asked, f"{page.name} fetches {asked}"


def test_every_page_is_in_the_navigation():
    told = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    own = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert own <= told
    assert all(name.startswith("project/") for name in told - own), "a page that does not exist"


def constants():
    """Every piece of text in the package's sources, up to where a value is put in."""
    found = []
    for path in (ROOT / "memoir_fast").rglob("*.py"):
        tree = ast.parse(path.read_text())
        found += [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return found


def test_errors_are_told_by_their_own_text():
    """A heading below `Attaching` is a piece of a message; so is the left column of the table of proofs."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Attaching")[2]
    told = re.findall(r"^### (.*)$", page, re.MULTILINE)
    table = page.partition("| the message says |")[2].partition("\n\n")[0]
    told += [row.strip() for row in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) if row.strip("- ")]
    assert len(told) > 40
    texts = "\n".join(constants())
    missing = [text for text in told if text not in texts]
    assert not missing, f"no error says {missing}"
