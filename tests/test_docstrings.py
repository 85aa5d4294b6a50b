"""The examples in the package's docstrings, run as written. Those of the ops: tests/ops/test_docstrings.py.

An example may use `model` and `tokenizer`, and, where it attaches none itself, `memoir`, an empty memory on that model.
"""

import dataclasses
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
def test_example(example, tiny_llama, tiny_tokenizer, tmp_path):
    source = "".join(one.source for one in example.examples)
    example.globs |= {"model": tiny_llama, "tokenizer": tiny_tokenizer, "folder": tmp_path / "memory"}
    if "memoir." in source and "Memoir." not in source:
        recipe = dataclasses.replace(memoir_fast.RECIPES["fast"], prefixes=0)
        config = memoir_fast.MemoirConfig(recipe=recipe, background=8, tau=0.9)
        example.globs["memoir"] = memoir_fast.Memoir.attach(tiny_llama, tiny_tokenizer, config)
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert outcome.failed == 0 and outcome.attempted
