"""Texts of a memory, or of a model, on a terminal: what would steer it is not printed.

An edit's text may hold the sequences that clear a screen, rename a window, or turn the order of what is read around.
"""

import re
import time
import warnings
from typing import Any

# Controls but tab and newline; marks that turn the writing direction; separators of lines; halves of characters.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """`text` with a replacement character, U+FFFD, for each character that would steer a terminal.

    Line breaks and tabs stay, as do the joiners that scripts and emoji need.

    Example:
        >>> from memoir_fast.cli.plain import plain
        >>> plain("Lyon\\x1b[2J")
        'Lyon\ufffd[2J'
    """
    return _STEERING.sub("\ufffd", text)


def cell(text: str) -> Any:
    """`text` for a table, by `plain`, and without what it would mean as markup."""
    from rich.text import Text

    return Text(plain(text))


def grid(*names: str, **given: Any) -> Any:
    """A rich Table of such columns, which cuts nothing off: what is too wide for its column goes on in the next line.

    Example:
        >>> from memoir_fast.cli.plain import grid
        >>> grid("file").columns[0].overflow
        'fold'
    """
    from rich.table import Column, Table

    return Table(*(Column(name, overflow="fold") for name in names), **given)


def moment(seconds: Any) -> str:
    """A time in seconds since 1970, as this machine's clock shows it; "no time" for whatever is none.

    Example:
        >>> from memoir_fast.cli.plain import moment
        >>> moment(1e300), moment(None)
        ('no time', 'no time')
    """
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(seconds)))
    except (TypeError, ValueError, OverflowError, OSError):
        return "no time"


def escaped(json_text: str) -> str:
    """A JSON text with escapes for what `plain` replaces: it says the same, and steers nothing."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def warn_plainly() -> None:
    """Has warnings of this process shown by `plain`: some quote a file."""
    shown = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: plain(shown(*args, **kwargs))
