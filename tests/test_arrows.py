"""Arrows run one way: each file imports only from its own folder and from those that stand before it in `ORDER`."""

import ast
from pathlib import Path

import pytest

import memoir_fast

PACKAGE = Path(memoir_fast.__file__).parent
ROOT = PACKAGE.parent
KERNELS = ROOT / "kernels"

# From the bottom up; DESIGN.md draws it. A file at the package's top is a place of its own.
ORDER = (
    "errors",
    "_source_tree",
    "atomic",
    "recipe",
    "config",
    "mask_format",
    "checks",
    "reference",
    "kernels",
    "native",
    "backends",
    "ops",
    "distributed",
    "modules",
    "hf",
    "core",
    "editing",
    "io",
    "upkeep",
    "kept",
    "memoir",
    "evaluation",
    "integrations",
    "serving",
    "cli",
    "__main__",
)
# Imports within a function or for types alone that a module's head could not have, and why. All others of the package's
# own would only hide a circle.
LATE = {
    "ops": "Triton may be missing, and takes a second to load: kernels are imported when they are first asked for",
    "cli": "`memoir --help` answers without torch and transformers",
    "__init__": "`import memoir_fast` loads nothing heavy; public names are imported at their first use",
}


def sources():
    package = [path for path in PACKAGE.rglob("*.py") if "kernels" not in path.relative_to(PACKAGE).parts[:1]]
    return sorted(package) + sorted(KERNELS.glob("*.py"))


def place(path):
    """The folder of the package that a file is in, or its own name where it stands at the top."""
    if KERNELS in path.parents:
        return "kernels"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(what is imported from the package, as a dotted name without its head; whether it stands at the file's head)."""
    tree = ast.parse(path.read_text())
    at_head = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "memoir_fast":
                yield name.removeprefix("memoir_fast").removeprefix("."), id(node) in at_head


def target(name):
    """The place that an import leads to; None for a name of the package itself, e.g. its version."""
    first = name.split(".")[0]
    return first if first in ORDER else None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_from_below(path):
    own = place(path)
    if own == "__init__":
        return
    assert own in ORDER, f"{own} has no place in the order"
    for name, at_head in imports(path):
        found = target(name)
        if found is None:
            if name == "__version__":
                continue
            public = name and hasattr(memoir_fast, name)
            assert public and ORDER.index(own) > ORDER.index("memoir"), f"{path} imports {name} from the package's face"
            continue
        assert ORDER.index(found) <= ORDER.index(own), f"{path} imports {name}: {found} stands above {own}"
        assert at_head or own in LATE, f"{path} imports {name} late, which may hide a circle"


def module_of(path):
    parts = (
        ("kernels", *path.relative_to(KERNELS).parts) if KERNELS in path.parents else path.relative_to(PACKAGE).parts
    )
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def test_no_circle_among_files():
    modules = {module_of(path): path for path in sources() if place(path) != "__init__"}
    arrows = {
        module: {
            found
            for name, _ in imports(path)
            for found in [name if name in modules else name.rpartition(".")[0]]
            if found in modules
        }
        for module, path in modules.items()
    }
    free = set()
    while len(free) < len(modules):
        ready = {module for module in modules if module not in free and arrows[module] <= free}
        assert ready, f"a circle among {sorted(set(modules) - free)}"
        free |= ready


def test_only_hf_and_what_stands_above_it_meets_transformers():
    for path in sources():
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        assert "transformers" not in names or place(path) == "hf", f"{path} imports transformers"
