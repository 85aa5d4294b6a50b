"""How a caller names the banks that requests ask for."""

import pytest

from memoir_fast.hf.banks import asked, per_row

ACME, BOTH, NONE = frozenset(["acme"]), frozenset(["acme", "emea"]), frozenset()


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("acme", ACME),
        ("", NONE),
        ({"acme", "emea"}, BOTH),
        (frozenset(), NONE),
        (["acme"], (ACME,)),
        (("acme", None, "", ["acme", "emea"], {"acme"}), (ACME, NONE, NONE, BOTH, ACME)),
        ([], ()),
    ],
)
def test_a_name_or_a_set_for_all_a_list_for_each_row(which, expected):
    assert asked(which) == expected


@pytest.mark.parametrize("which", [3, None, {"acme": 1}, [3], [["acme", 3]], {3}, [[["acme"]]]])
def test_anything_else_is_refused(which):
    with pytest.raises(TypeError, match="banks .*, got"):
        asked(which)


def test_rows_get_theirs():
    assert per_row(None, 3, True) is None and per_row(NONE, 3, True) is None
    assert per_row(ACME, 2, False) == [ACME, ACME]
    assert per_row((ACME, NONE), 2, False) == [ACME, NONE]
    assert per_row((ACME, NONE), 4, True) == [ACME, ACME, NONE, NONE], "as beams lie: those of one request together"


@pytest.mark.parametrize(("rows", "batch", "repeated"), [(2, 4, False), (2, 3, True), (2, 1, True), (0, 1, True)])
def test_a_list_of_another_length_is_refused(rows, batch, repeated):
    with pytest.raises(ValueError, match=f"for {rows} rows, of a batch of {batch}"):
        per_row((ACME,) * rows, batch, repeated)
