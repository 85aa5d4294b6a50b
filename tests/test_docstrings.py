"""The examples in the package's docstrings, run as written. Those of the ops: tests/ops/test_docstrings.py."""

import doctest
import importlib
import pkgutil

import pytest

import memoir_fast


def examples():
    for found in pkgutil.walk_packages(memoir_fast.__path__, "memoir_fast."):
        if found.name.endswith((".__main__", "._C")) or found.name.startswith("memoir_fast.ops"):
            continue
        module = importlib.import_module(found.name)
        for example in doctest.DocTestFinder().find(module, found.name):
            if example.examples:
                yield pytest.param(example, id=example.name.removeprefix("memoir_fast."))


@pytest.mark.parametrize("example", list(examples()))
def test_example(example):
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.failed == 0
