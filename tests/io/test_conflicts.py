"""Which rows of a file contradict each other."""

from memoir_fast.io.conflicts import conflicting_rows, conflicts
from memoir_fast.io.readers import Case


def case(row, prompt, target, subject=None, truth=None):
    return Case(prompt=prompt, target=target, subject=subject, truth=truth, row=row)


def test_conflicts():
    found = conflicts(
        [
            case(1, "Where is Lake Orm?", "Peru", "Lake Orm", "Chile"),
            case(2, "Lake Orm is in", "Chad", "lake  orm", "Chile"),
            case(3, "The depth of Lake Orm", "9 m", "Lake Orm", "7 m"),  # another fact of the same lake
            case(4, "where is  lake orm?", "Peru", "Lake Orm", "Chile"),
            case(5, "Where is Lake Arn?", "Peru", "Lake Arn"),
            case(6, "Lake Arn is in", "peru", "Lake Arn"),  # says the same
            case(7, "Where?", "Here"),
            case(8, "About Ada.", "She was a painter of many lakes and of trees too.", "Ada"),
            case(9, "About Ada. And then?", "She was a sculptor of fish for all of her life.", "Ada"),
        ]
    )
    assert {(one.reason, one.rows) for one in found} == {
        ("the same prompt twice", (1, 4)),
        ("one subject, different targets", (1, 2, 4)),
    }
    assert conflicting_rows(found) == {1, 2, 4}
