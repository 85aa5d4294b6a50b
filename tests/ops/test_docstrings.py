"""The examples in the ops' docstrings, run as written."""

import doctest
import importlib

import pytest

from memoir_fast import backends, ops


@pytest.mark.parametrize("name", ops.__all__)
def test_example(name):
    module = importlib.import_module(f"memoir_fast.ops.{name.removesuffix('_add_')}")
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(ops, name), name, module=module)
    with backends.use("reference"):
        outcome = doctest.DocTestRunner().run(example)
    assert outcome.attempted >= 3 and outcome.failed == 0


@pytest.mark.parametrize("name", ops.__all__)
def test_docstring_states_the_contract(name):
    text = getattr(ops, name).__doc__
    for heading in ("Args:", "Returns:", "Raises:", "Example:"):
        assert heading in text, f"{name} has no section {heading}"
