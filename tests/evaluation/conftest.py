"""What several tests of evaluations use."""

import pytest


@pytest.fixture
def same():
    """Whether two results agree in all but times, floats to rounding: what a loaded memory's edits read is run anew.

    `backends` is what the process has run so far, whoever ran it.
    """

    def agree(one, other):
        if isinstance(one, dict):
            apart = {"seconds", "seconds_per_edit", "backends"}
            return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one.keys() - apart)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(agree, one, other))
        return one == (pytest.approx(other, rel=1e-5) if isinstance(other, float) else other)

    return agree
