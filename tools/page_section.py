"""A part of a page that a script writes: what lies between two markers."""


def replaced(text: str, begin: str, end: str, inside: str) -> str:
    """A page with what lies between its markers replaced. ValueError where it has none."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the page lacks {begin} and {end}")
    return f"{before}{begin}\n{inside}\n{end}{after}"
