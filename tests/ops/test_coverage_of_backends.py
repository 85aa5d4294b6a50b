"""On a machine with a GPU, a backend that is missing is a failure and not a skip."""

import pytest

from memoir_fast import backends


@pytest.mark.gpu
@pytest.mark.parametrize("op", backends.OPS)
def test_triton_serves_every_op_on_a_gpu(op):
    assert not isinstance(backends.load(op, "triton"), str), backends.load(op, "triton")


@pytest.mark.parametrize("op", backends.OPS)
def test_reference_serves_every_op(op):
    assert not isinstance(backends.load(op, "reference"), str), backends.load(op, "reference")
