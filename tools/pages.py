"""Pages of the site that lie outside of docs/: mkdocs calls this while it builds (`hooks` in mkdocs.yml).

The project's own pages (DESIGN.md, ...) become pages of the site. In every page, a link to a file of the repository
leads to its page where it has one; where it has none (a source file, a result), its text is left, without the link. A
link to a file that does not exist is left as it is, for mkdocs to find.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
PAGES = {
    "DESIGN.md": "project/design.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "bench/NOTES.md": "project/benchmarks.md",
    "bench/GROWTH.md": "project/growth.md",
}
INSTEAD = {"README.md": "index.md"}
PLOTS = "bench/plots"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)`*\s*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the project's own pages and the plots."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for plot in sorted((ROOT / PLOTS).glob("*.svg")):
        files.append(File.generated(config, f"plots/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bends the links of one page."""
    place = page.file.src_uri
    source = next((own for own, there in PAGES.items() if there == place), f"{DOCS}/{place}")
    return bent(markdown, source, place)


def bent(markdown: str, source: str, place: str) -> str:
    """The text of a page, with links that hold on the site.

    Args:
        markdown (str): the text.
        source (str): its file, from the repository's root: what its links are relative to.
        place (str): its page, from the site's root.
    """

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[0]
        path = os.path.normpath(str(PurePosixPath(source).parent / target)).replace(os.sep, "/")
        there = _page(path)
        if there is not None:
            near = os.path.relpath(there, str(PurePosixPath(place).parent)).replace(os.sep, "/")
            return f"{found['image']}[{found['text']}]({near}{'#' if anchor else ''}{anchor})"
        return found["text"] if (ROOT / path).exists() else found[0]

    parts, last = [], 0
    for code in _CODE.finditer(markdown):  # what is shown as code stays as it is
        parts += [_LINK.sub(link, markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _LINK.sub(link, markdown[last:])])


def _page(path: str) -> str | None:
    """Where a file of the repository lies on the site, None where it does not."""
    if path in PAGES or path in INSTEAD:
        return PAGES.get(path) or INSTEAD[path]
    if path.startswith(f"{PLOTS}/"):
        return path.removeprefix("bench/")
    inside = path.startswith(f"{DOCS}/") and not path.endswith((".json", ".py")) and (ROOT / path).is_file()
    return path.removeprefix(f"{DOCS}/") if inside else None
