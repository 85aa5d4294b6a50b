"""`masked_linear` over a memory of pages: the bits of one page, wherever edits live."""

import pytest
import torch

from memoir_fast import backends
from memoir_fast.ops import masked_linear_add_

OP = "masked_linear"
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def one_page(batch, tokens, width, outputs, k, edits, dtype, device="cpu"):
    columns = torch.stack([torch.randperm(width)[:k].sort().values for _ in range(edits)]).int()
    route = torch.randint(-1, edits, (batch,)).int()
    route[0] = edits - 1
    x, memory = torch.randn(batch, tokens, width).to(dtype), torch.randn(width, outputs).to(dtype)
    return tuple(value.to(device) for value in (x, memory, columns, route))


def on_pages(inputs, pages):
    """The same product from `pages` pages: edits on the first, the last and any other; what no edit owns is NaN."""
    x, memory, columns, route = inputs
    page = torch.randint(pages, (len(columns),), dtype=torch.int32, device=columns.device)
    page[0], page[-1] = 0, pages - 1
    table = memory.new_full((pages, *memory.shape), float("nan"))
    for edit in range(len(columns)):
        table[page[edit], columns[edit].long()] = memory[columns[edit].long()]
    return x, table.flatten(0, 1), columns + len(memory) * page[:, None], route


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pages", [2, 3, 40])
@pytest.mark.parametrize(
    "sizes", [(3, 2, 1, 5, 1, 3), (4, 1, 63, 33, 20, 4), (3, 65, 65, 8, 30, 2), (2, 130, 1000, 9, 286, 3)]
)
def test_pages_give_the_bits_of_one(op, backend, sizes, pages, dtype):
    inputs = one_page(*sizes, dtype, backend.device)
    spread = on_pages(inputs, pages)
    y = op(*spread)
    assert y.isfinite().all() and y[0].any()
    base = torch.randn_like(y)
    with backends.use(backend.name):
        assert torch.equal(masked_linear_add_(base.clone(), *spread), masked_linear_add_(base.clone(), *inputs))
    assert torch.equal(y, op(*inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 2, 33, 16, 5, 3), (2, 70, 65, 32, 30, 2)])
def test_some_of_the_outputs_of_wider_rows(op, backend, sizes, dtype):
    """As the layers of one memory read it: nothing is copied, and what lies beside is not read."""
    x, memory, columns, route = one_page(*sizes, dtype, backend.device)
    outputs = memory.shape[1]
    wide = memory.new_full((len(memory), 3 * outputs), float("nan"))
    wide[:, outputs : 2 * outputs] = memory
    part = wide[:, outputs : 2 * outputs]
    assert torch.equal(op(x, part, columns, route), op(x, memory, columns, route))
    base = torch.randn(*x.shape[:2], outputs, device=x.device).to(dtype)
    with backends.use(backend.name):
        added = masked_linear_add_(base.clone(), x, part, columns, route)
        assert torch.equal(added, masked_linear_add_(base.clone(), x, memory, columns, route))


def test_a_page_beyond_the_first_two_billion_values(op, backend):
    """Addresses that nothing was written to take no memory: the table has 6 GB of them."""
    if backend.device != "cpu":
        pytest.skip("on a device the memory would be taken")
    width, outputs, page = 64, 1024, 46_000
    storage = torch.UntypedStorage((page + 1) * width * outputs * 2)
    table = torch.empty(0, dtype=torch.bfloat16).set_(storage, 0, ((page + 1) * width, outputs))
    assert page * width * outputs > 2**31
    x, memory, columns, route = one_page(1, 3, width, outputs, 20, 1, torch.bfloat16)
    table[page * width :] = memory
    assert torch.equal(op(x, table, columns + page * width, route), op(x, memory, columns, route))
