"""JSON that strangers may have written: only what is plain is taken, and only that is written."""

import json
import math
from typing import Any

DEEPEST = 32
LONGEST = 1 << 24  # bytes; parsed, JSON takes up to thirty times its length
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def loads(text: bytes) -> Any:
    """The value of a JSON text, where it is plain.

    Plain are texts that UTF-8 can hold, whole numbers of 64 bits, finite numbers, true, false, null, and lists and
    objects of these, at most 32 deep. Names are printable, and no object has one twice.

    Args:
        text (bytes): UTF-8, at most 16 MiB.

    Raises:
        ValueError: it is longer, no JSON, or not plain; the message says which.

    Example:
        >>> from memoir_fast.io import strict_json
        >>> strict_json.loads(b'{"id": 3, "texts": ["a", "b"]}')
        {'id': 3, 'texts': ['a', 'b']}
        >>> strict_json.loads(b'{"id": 3, "id": 4}')
        Traceback (most recent call last):
            ...
        ValueError: an object has the name 'id' twice
    """
    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST:,} bytes of JSON, got {len(text):,}")
    try:
        value = _DECODER.decode(text.decode())
    except RecursionError:
        raise ValueError(f"lists and objects lie more than {DEEPEST} deep") from None
    _require_plain(value)
    return value


def dumps(value: Any) -> bytes:
    """A plain value as JSON, in as few bytes as it takes, which `loads` reads.

    Raises:
        ValueError: `loads` would not take it.
    """
    _require_plain(value)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST:,} bytes of JSON, got {len(text):,}")
    return text


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"an object has the name {name!r:.60} twice")
        values[name] = value
    return values


def _whole(digits: str) -> int:
    if len(digits) > len(str(_LEAST)):  # a long number takes the square of its length to parse
        raise ValueError(f"a whole number has {len(digits)} digits, expected one of 64 bits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_without_twins, parse_int=_whole)


def _require_plain(value: Any) -> None:
    """ValueError where something is not plain; looks at one level after the other, since depth is a stranger's too."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                for name in one:
                    if not isinstance(name, str) or not name or not name.isprintable():
                        raise ValueError(f"a name must be printable text, got {name!r:.60}")
                inner.extend(one.values())
            elif isinstance(one, (list, tuple)):
                inner.extend(one)
            elif not (isinstance(one, str) and one.isascii()):
                _require_plain_leaf(one)
        if not inner:
            return
        level = inner
    raise ValueError(f"lists and objects lie more than {DEEPEST} deep")


def _require_plain_leaf(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a text holds half a character: {value[:40]!r}") from None
    elif isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise ValueError("a whole number does not fit in 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a number must be finite, got {value}")
    elif value is not None:
        raise ValueError(f"expected text, a number, true, false, null, a list or an object, got {type(value).__name__}")
