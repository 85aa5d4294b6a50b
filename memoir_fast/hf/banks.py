"""Which banks of edits the requests of a batch ask for, as their caller names them."""

from collections.abc import Iterable, Sequence

from memoir_fast.modules.banks import Asked

Which = str | Iterable[str | Iterable[str] | None]


def asked(which: Which) -> Asked | tuple[Asked, ...]:
    """The banks that all rows of a batch ask for, or those of each row.

    Args:
        which: a bank, or a set of banks, for all rows; or a list with an entry for each row: a bank, several, or None.
            "" names no bank: edits without one are seen in any case.

    Raises:
        TypeError: something else.

    Example:
        >>> from memoir_fast.hf.banks import asked
        >>> asked("acme") == asked({"acme"}) == frozenset(["acme"]), asked(["acme", None])
        (True, (frozenset({'acme'}), frozenset()))
    """
    if isinstance(which, (str, set, frozenset)):
        return _names(which)
    if isinstance(which, (list, tuple)):
        return tuple(_names(one) for one in which)
    raise TypeError(f"banks are a name or a set of names, or a list with an entry for each row, got {which!r}")


def _names(which: object) -> Asked:
    names = [which] if isinstance(which, str) else [] if which is None else which
    if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"the banks of a row are a name, several or None, got {which!r}")
    return frozenset(names) - {""}


def per_row(banks: Asked | tuple[Asked, ...] | None, batch: int, repeated: bool) -> Sequence[Asked] | None:
    """The banks of each of B rows; None: nobody asks for any.

    Args:
        banks: what `asked` gave.
        batch (int): B.
        repeated (bool): whether each request may have several rows, one behind the other, as for beams.

    Raises:
        ValueError: there are entries for another number of rows.
    """
    if not isinstance(banks, tuple):
        return [banks] * batch if banks else None
    times = batch // len(banks) if repeated and banks else 1
    if times * len(banks) != batch:
        raise ValueError(
            f"banks were named for {len(banks)} rows, of a batch of {batch}: give an entry for each row, or a name or "
            "a set of names for all"
        )
    return [one for one in banks for _ in range(times)]
