"""What is asked of a router, and what else a thread or task remembers of an object, is of that one alone."""

from contextvars import copy_context

import pytest

from memoir_fast.hf.call import Call, resume, running
from memoir_fast.hf.overrides import Overrides, asked_of, overriding
from memoir_fast.modules.views import Views


def _of_override(owner):
    with overriding(owner, disabled=True):
        return copy_context()


def _of_call(owner):
    context = copy_context()
    context.run(resume, owner, Call())
    return context


def _of_generation(owner):
    with owner.generation():
        return copy_context()


class _Router:
    """As much of one as a context knows."""


@pytest.mark.parametrize(
    ("kind", "made", "found", "nothing"),
    [
        (_Router, _of_override, asked_of, Overrides()),
        (_Router, _of_call, running, None),
        (Views, _of_generation, lambda views: views.generating, False),
    ],
)
def test_a_copied_context_says_nothing_of_what_takes_the_place_of_its_owner(kind, made, found, nothing):
    for _ in range(200):  # some are all but sure to be followed by an object at their own address
        owner = kind()
        context = made(owner)
        assert context.run(found, owner) != nothing
        del owner
        others = [kind() for _ in range(20)]
        assert all(context.run(found, other) == nothing for other in others)
