"""Finds out which models a memory works on, and writes the tables of docs/support.md.

    python tools/support.py [NAME ...] [--check]

With names, only these rows are run, and nothing is written. Rows whose package is not installed are left as the page
has them. The exit code is 1 where a check fails, or, with --check, where the page says something else than was found.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # a checkout's package, installed or not

import page_section  # noqa: E402
import support_bases  # noqa: E402
from bases import BASES  # noqa: E402
from support_checks import FEATURES, MORE, ROWS, Row, row  # noqa: E402

PAGE = ROOT / "docs" / "support.md"
BEGIN, END = "<!-- tools/support.py: begin -->", "<!-- tools/support.py: end -->"
HEAD = ("", "model type", "edited layer", *FEATURES, *MORE)


def line(one: Row, whole: bool = False) -> str:
    """A row of the table, as far as it was run; `whole`: with words for columns that were not."""
    cells = [*["works"] * len(FEATURES), *one.more]
    if one.refused is not None:
        cells = ["refused", *["-"] * (len(FEATURES) + len(MORE) - 1)]
    if whole:
        cells += ["not run"] * (len(FEATURES) + len(MORE) - len(cells))
    layer = f"`{one.layer}`" if one.layer else "the preset's"
    return f"| {' | '.join([one.name, f'`{one.kind}`', layer, *cells])} |"


def reason(one: Row) -> str:
    """What a refused row is refused with."""
    return f"- {one.name}: `{one.refused}`"


def section(rows: list[Row]) -> str:
    """The text between the markers."""
    table = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(line(one, whole=True) for one in rows)]
    return "\n".join([*table, "", "Refused with:", "", *(reason(one) for one in rows if one.refused is not None)])


def rewritten(text: str, rows: list[Row], bases: list[support_bases.BaseRow]) -> str:
    """A page with the sections between its markers replaced. ValueError where it has none."""
    forms = support_bases.section(bases, text)
    text = page_section.replaced(text, support_bases.BEGIN, support_bases.END, forms)
    return page_section.replaced(text, BEGIN, END, section(rows))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to run, by what stands first in them")
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is found with the page")
    asked = parser.parse_args(arguments)
    names = (*ROWS, *BASES)
    unknown = [name for name in asked.names if name not in names]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; there are {', '.join(names)}")
    rows, bases, failed = [], [], False
    for name in asked.names or names:
        if name in BASES and BASES[name].missing:
            print(f"{name} is left as it is: {BASES[name].package} is not installed", flush=True)
            continue
        try:
            if name in BASES:
                bases.append(support_bases.row(name))
                print(support_bases.line(bases[-1]), flush=True)
            else:
                rows.append(row(name, compiled=True))
                print(line(rows[-1]), flush=True)
        except Exception as error:
            failed = True
            print(f"{name} fails: {type(error).__name__}: {error}", flush=True)
    if failed or asked.names:
        return int(failed)
    text = PAGE.read_text()
    if asked.check:
        return int(rewritten(text, rows, bases) != text)
    PAGE.write_text(rewritten(text, rows, bases))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
