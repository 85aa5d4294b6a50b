"""masked_linear's CUDA kernels without a GPU: compiled for the CPU, where every CUDA thread is a fiber."""

import ctypes
import mmap
import signal
import subprocess
import sys

import pytest
import torch

from memoir_fast.distributed.row_parallel import NO_ROW
from memoir_fast.reference import masked_linear as reference

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def run(emulated):
    """Runs the streaming kernel of `rows` tokens, or tiles of -`rows`, on clusters of `splits` blocks.

    With a base it adds to it in place.
    """

    def call(rows, x, memory, columns, route, base=None, splits=2):
        out = base
        if base is None:
            out = torch.full((*x.shape[:2], memory.shape[1]), float("nan"), dtype=x.dtype)
        assert memory.data_ptr() % 16 == 0 and memory.stride(1) == 1
        assert memory.stride(0) * memory.element_size() % 16 == 0
        strides = (*x.stride(), memory.stride(0), *columns.stride(), route.stride(0), *out.stride())
        sizes = (*x.shape, memory.shape[1], columns.shape[1], len(columns), len(memory))
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (out, x, memory, columns, route)]
        emulated("linear").run_linear(
            KINDS[x.dtype], rows, splits, int(base is not None), *pointers,
            (ctypes.c_int64 * len(strides))(*strides), (ctypes.c_int * len(sizes))(*sizes),
        )  # fmt: skip
        return out

    return call


@pytest.mark.parametrize("rows", [1, -16])
def test_a_load_that_a_device_would_fault_on_ends_the_process(emulated, rows):
    """So a call whose rows of memory begin elsewhere than the op's checks ask for cannot pass in any test here."""
    script = """
import ctypes, sys
library, room = ctypes.CDLL(sys.argv[1]), ctypes.create_string_buffer(1 << 12)
first = ctypes.addressof(room) + 15 & ~15
places = [ctypes.c_void_p(first + off) for off in (0, 512, 1024 + int(sys.argv[3]), 2048, 2048)]
strides, sizes = (ctypes.c_int64 * 10)(8, 8, 1, 8, 1, 1, 1, 8, 8, 1), (ctypes.c_int * 7)(1, 1, 8, 8, 1, 1, 8)
library.run_linear(2, int(sys.argv[2]), 1, 0, *places, strides, sizes)
"""
    for off in (0, 8):
        command = [sys.executable, "-c", script, emulated("linear")._name, str(rows), str(off)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, "misaligned address" in done.stderr) == (
            (-signal.SIGABRT, True) if off else (0, False)
        )


@pytest.fixture
def assert_right(run, assert_rounded_once):
    def check(rows, arguments, splits=2):
        x, memory, columns, route = arguments
        y = run(rows, *arguments, splits=splits)
        assert_rounded_once(y, arguments)
        unrouted = (route < 0) | (route >= len(columns))
        assert not y[unrouted].any()
        assert torch.equal(run(rows, *arguments, splits=splits), y)
        base = torch.randn_like(y)
        base[unrouted] = float("nan")
        changed = run(rows, *arguments, base=base.clone(), splits=splits)
        assert_rounded_once(changed[~unrouted], (x[~unrouted], memory, columns, route[~unrouted]), base[~unrouted])
        assert changed[unrouted].isnan().all()

    return check


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (1, (1, 1, 9, 8, 1, 1)),
        (1, (1, 1, 1536, 576, 440, 3)),
        (1, (1, 1, 700, 1000, 65, 2)),
        (2, (1, 2, 300, 264, 63, 2)),
        (4, (1, 3, 300, 8, 77, 2)),
        (4, (4, 1, 300, 24, 70, 3)),
    ],
    ids=str,
)
def test_stream(assert_right, linear_inputs, dtype, rows, shape):
    assert_right(rows, linear_inputs(*shape, dtype))


@pytest.mark.parametrize("shape", [(1, 8, 200, 520, 30, 1), (3, 2, 200, 40, 63, 2)], ids=str)
def test_stream_of_more_tokens_of_float32(assert_right, linear_inputs, shape):
    assert_right(8, linear_inputs(*shape, torch.float32))


@pytest.mark.parametrize("splits", [1, 3, 4])
def test_stream_of_more_columns_than_a_chunk(assert_right, linear_inputs, splits):
    assert_right(1, linear_inputs(1, 1, 1400, 16, 1300, 1, torch.float32), splits)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (-16, (1, 5, 40, 8, 1, 1)),
        (-16, (1, 16, 300, 264, 63, 2)),
        (-16, (5, 3, 300, 24, 65, 2)),
        (-32, (1, 32, 400, 40, 129, 2)),
        (-32, (2, 11, 200, 304, 40, 2)),
        (-64, (1, 63, 200, 256, 70, 1)),
        (-64, (1, 65, 200, 16, 97, 1)),
        (-64, (3, 40, 200, 16, 33, 2)),
    ],
    ids=str,
)
def test_tiles(assert_right, linear_inputs, dtype, rows, shape):
    assert_right(rows, linear_inputs(*shape, dtype))


@pytest.mark.parametrize(
    ("rows", "shape", "dtype"),
    [
        (1, (1, 1, 70, 16, 40, 3), torch.float32),
        (4, (4, 1, 90, 24, 70, 3), torch.bfloat16),
        (8, (6, 1, 90, 24, 40, 8), torch.float32),
        (-16, (5, 3, 63, 24, 40, 3), torch.float16),
        (-16, (9, 1, 90, 24, 40, 8), torch.bfloat16),
        (-64, (3, 40, 65, 16, 33, 2), torch.bfloat16),
    ],
    ids=str,
)
def test_edits_on_several_pages(assert_right, linear_inputs, on_pages, rows, shape, dtype):
    """The bits of one page, wherever edits live, and no page is read on which none of the batch's does."""
    assert_right(rows, on_pages(linear_inputs(*shape, dtype), pages=5))


@pytest.mark.parametrize(
    ("rows", "tokens", "dtype"), [(1, 1, torch.float32), (4, 3, torch.bfloat16), (-16, 5, torch.bfloat16)]
)
def test_layers_beside_one_another_on_several_pages(
    run, linear_inputs, on_pages, assert_rounded_once, rows, tokens, dtype
):
    """A layer's slice of wider rows, and lists of rows that end with what is none, as where layers are split."""
    x, memory, columns, route = on_pages(linear_inputs(1, tokens, 70, 40, 33, 3, dtype), pages=4, only=[3])
    wide = torch.full((len(memory), 120), float("nan"), dtype=dtype)
    wide[:, 40:80] = memory
    kept = columns[:, :21].clone()
    columns[:, 21:] = NO_ROW
    y = run(rows, x, wide[:, 40:80], columns, route)
    assert_rounded_once(y, (x, memory, kept, route))
    assert torch.equal(run(rows, x, memory, columns, route), y)


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (-16, torch.bfloat16)])
def test_rows_beyond_two_billion_pieces(run, linear_inputs, rows, dtype):
    """Addresses that nothing was written to take no memory: the table has 48 GB of them."""
    width, outputs, apart = 64, 16, 1 << 28
    x, memory, columns, route = linear_inputs(1, 1, width, outputs, 20, 1, dtype)
    size, last = memory.element_size(), 2 * width
    row = apart // size  # so many values from one row to the next
    unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name from 3.13 on
    try:
        reserved = mmap.mmap(-1, 3 * width * apart, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved)
    except OSError as error:
        pytest.skip(f"the system gives no such range of addresses: {error}")
    table = torch.frombuffer(reserved, dtype=dtype).as_strided((3 * width, outputs), (row, 1))
    assert last * apart >= 2**31 * 16
    table[last:] = memory
    assert torch.equal(run(rows, x, table, columns + last, route), run(rows, x, memory, columns, route))


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (-16, torch.bfloat16)])
def test_rows_of_another_page_are_left_out(run, linear_inputs, on_pages, assert_rounded_once, rows, dtype):
    x, memory, columns, _ = linear_inputs(1, 1, 50, 16, 30, 1, dtype)
    route = torch.zeros(1).int()
    x, memory, columns, route = on_pages((x, memory, columns, route), pages=3, only=[1])
    kept = columns[:, torch.arange(30) % 3 != 1]
    columns[0, 1::3] = torch.tensor([-1, 49, 100, 2**31 - 1, -(2**31), 0, 149, 150, 12, 120]).int()
    assert_rounded_once(run(rows, x, memory, columns, route), (x, memory, kept, route))


@pytest.mark.parametrize("splits", [1, 4])
def test_tiles_in_other_clusters(assert_right, linear_inputs, splits):
    assert_right(-16, linear_inputs(2, 5, 300, 40, 230, 2, torch.bfloat16), splits)


@pytest.mark.parametrize(("rows", "batch", "dtype"), [(8, 6, torch.float32), (-16, 9, torch.bfloat16)])
def test_many_routes_take_one_dense_pass(assert_right, linear_inputs, rows, batch, dtype):
    """Enough routes that reading all of memory once is cheaper: what no edit reads is read then, and is not used."""
    x, memory, columns, route = linear_inputs(batch, 1, 90, 24, 40, 8, dtype)
    route[:] = torch.tensor([7, 1, -1, 2, 1, 9, 3, 4, 5][:batch])
    route[1] = 3 if batch < 9 else 1
    assert_right(rows, (x, memory, columns, route))


@pytest.mark.parametrize(("rows", "dtype"), [(4, torch.float32), (-16, torch.float16)])
def test_every_route_out_of_range_counts_as_none(assert_right, linear_inputs, rows, dtype):
    x, memory, columns, route = linear_inputs(4, 1, 50, 16, 9, 2, dtype)
    for value in (-1, -7, 2, 2**31 - 1, -(2**31)):
        route[:] = value
        assert_right(rows, (x, memory, columns, route))


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (2, torch.bfloat16), (-16, torch.bfloat16)])
def test_columns_out_of_range_are_left_out(run, linear_inputs, assert_rounded_once, rows, dtype):
    x, memory, columns, _ = linear_inputs(1, 2 if rows == 2 else 1, 50, 16, 30, 1, dtype)
    columns[0, ::3] = torch.tensor([-1, 50, 2**31 - 1, -5, 60, 51, -(2**31), 50, 99, -1]).int()
    route = torch.zeros(1).int()
    kept = columns[:, (columns[0] >= 0) & (columns[0] < 50)]
    assert_rounded_once(run(rows, x, memory, columns, route), (x, memory, kept, route))


@pytest.mark.parametrize(("rows", "batch", "dtype"), [(8, 6, torch.float32), (-16, 9, torch.bfloat16)])
def test_one_dense_pass_leaves_out_columns_out_of_range(run, linear_inputs, assert_rounded_once, rows, batch, dtype):
    x, memory, columns, route = linear_inputs(batch, 1, 90, 24, 40, 9, dtype)
    wide = torch.full((batch, 1, 100), float("nan"), dtype=dtype)
    wide[..., :90] = x
    columns[:, 1::3] = torch.tensor([-1, 90, 95, 2**31 - 1, -5, 91, -(2**31), 180, 99, -90, 93, 94, 92]).int()
    route[:] = torch.arange(batch)
    kept = columns[:, torch.arange(40) % 3 != 1]
    assert_rounded_once(run(rows, wide[..., :90], memory, columns, route), (x, memory, kept, route))


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (-16, torch.bfloat16)])
def test_inactive_inputs_and_rows_are_not_read(run, linear_inputs, rows, dtype):
    x, memory, columns, route = linear_inputs(1, 2, 90, 40, 20, 2, dtype)
    expected = run(rows, x, memory, columns, route)
    idle = torch.ones(90, dtype=torch.bool)
    idle[columns[1].long()] = False
    x[..., idle], memory[idle] = float("nan"), float("inf")
    columns[0] = -1
    assert torch.equal(run(rows, x, memory, columns, route), expected)


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (-16, torch.bfloat16)])
def test_views(run, linear_inputs, rows, dtype):
    x, memory, columns, route = linear_inputs(2, 1, 64, 40, 9, 4, dtype)
    wide = torch.full((64, 56), float("nan")).to(dtype)
    wide[:, 8:48] = memory
    views = (
        x.transpose(0, 2).contiguous().transpose(0, 2),
        wide[:, 8:48],
        columns.t().contiguous().t(),
        route.repeat(2, 1).t()[:, 0],
    )
    expected = run(rows, x, memory, columns, route)
    assert torch.equal(run(rows, *views), expected)
    base = torch.zeros(2, 1, 80).to(dtype)
    base[..., 1::2] = 7
    run(rows, *views, base=base[..., ::2])
    assert torch.equal(base[..., ::2], expected) and (base[..., 1::2] == 7).all()


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float16), (2, torch.bfloat16), (-16, torch.bfloat16)])
def test_rounds_once(run, rows, dtype):
    x, memory = torch.randint(-32, 33, (1, 2, 64)).to(dtype), torch.randint(-32, 33, (64, 40)).to(dtype)
    base = (torch.randint(-2000, 2000, (1, 2, 40)) / 16).to(dtype)
    columns, route = torch.arange(0, 64, 2).int()[None], torch.zeros(1).int()
    product = reference.masked_linear(x.double(), memory.double(), columns, route)  # exact in float32 too
    once = (product + base.double()).to(dtype)
    assert not torch.equal(once, product.to(dtype) + base)
    assert torch.equal(run(rows, x, memory, columns, route, base=base), once)
