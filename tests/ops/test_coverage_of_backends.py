"""Which op has a kernel where: what the tests of the ops rely on, and what the table of docs/operations.md says."""

import re
from pathlib import Path

import pytest

from memoir_fast import backends, native

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.mark.parametrize("op", backends.OPS)
def test_reference_serves_every_op(op):
    assert isinstance(backends.load(op, "reference"), backends.Implementation)


@pytest.mark.gpu
@pytest.mark.parametrize("op", backends.OPS)
def test_triton_serves_every_op_on_a_gpu(op):
    found = backends.load(op, "triton")
    assert isinstance(found, backends.Implementation), found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_extension_has_the_kernels_meant(device, kernels_meant):
    try:
        built = native.extension().ops(device)
    except ImportError as error:
        pytest.skip(f"the extension is not built: {error}")
    if device == "cuda" and not built:
        pytest.skip("the extension was built without CUDA")
    assert set(built) == kernels_meant[device]


def test_readme_tells_the_same(kernels_meant):
    table = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]* \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE))
    told = {op: set(names.replace(" ", "").split(",")) for op, names in table.items()}
    internal = {"masked_linear_backward"}
    meant = {op: {name for name, ops in kernels_meant.items() if op in ops} for op in set(backends.OPS) - internal}
    assert told == meant
