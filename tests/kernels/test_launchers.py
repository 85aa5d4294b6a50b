"""The launchers of kernels/ say their types: mypy cannot ask for them, as it would ask the Triton kernels too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def untyped(source):
    """Names of the functions that leave out a type, but for those that Triton compiles: theirs are none of Python."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        if node.returns is None or any(one is not None and one.annotation is None for one in arguments):
            found.append(node.name)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_launchers_name_their_types(path):
    assert not untyped(path.read_text())


def test_an_untyped_launcher_shows():
    source = "@triton.jit\ndef k(x): ...\ndef f(x) -> int: ...\ndef g(x: int): ...\ndef h(*, x: int) -> int: ..."
    assert untyped(source) == ["f", "g"]
