"""`ResidualMemory`: W_m, transposed, in pages."""

import copy
import pickle

import pytest
import torch

from memoir_fast.modules import ResidualMemory


def _dense(memory, x, columns, route):
    """W_m as a dense matrix over masked inputs, as the method is written down."""
    y = torch.zeros(*x.shape[:2], memory.weight.shape[1], dtype=torch.float64)
    for row, edit in enumerate(route.tolist()):
        if edit >= 0:
            mask = torch.zeros(x.shape[2], dtype=torch.float64)
            mask[columns[edit].long()] = 1
            y[row] = (x[row].double() * mask) @ memory.weight.double()
    return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward_is_the_masked_dense_product(dtype):
    memory = ResidualMemory(40, 6, dtype)
    memory.weight.normal_()
    x = torch.randn(3, 5, 40).to(dtype)
    columns = torch.stack([torch.randperm(40)[:7].sort().values for _ in range(2)]).int()
    route = torch.tensor([1, -1, 0]).int()
    y = memory(x, columns, route)
    expected = _dense(memory, x, columns, route)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
    assert not y[1].any()
    base = torch.randn(3, 5, 6).to(dtype)
    kept = base.clone()
    assert memory.add_(base, x, columns, route) is base
    assert torch.equal(base[1], kept[1])
    torch.testing.assert_close(
        base.double(), kept.double() + expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps
    )


def test_it_starts_at_zero_and_update_writes_only_its_rows():
    memory = ResidualMemory(10, 3)
    assert not memory.weight.any()
    columns, a, c = torch.tensor([2, 7]).int(), torch.randn(4, 2), torch.randn(4, 3)
    assert memory.update(columns, a, c) is None
    torch.testing.assert_close(memory.weight[[2, 7]], a.T @ c)
    memory.weight[[2, 7]] = 0
    assert not memory.weight.any()


def test_gradients_reach_x_and_the_active_rows_alone():
    memory = ResidualMemory(10, 3, torch.float64)
    memory.weight.normal_()
    weight, x = memory.weight.clone().requires_grad_(), torch.randn(2, 4, 10, dtype=torch.float64, requires_grad=True)
    columns, route = torch.tensor([[1, 4]]).int(), torch.tensor([0, -1]).int()
    memory.table = weight
    memory(x, columns, route).square().sum().backward()
    assert x.grad[0][:, [1, 4]].all() and not x.grad[1].any()
    assert weight.grad[[1, 4]].all()
    assert weight.grad.count_nonzero() == 6


def test_state_dict_dtype_moves_and_repr():
    memory, other = ResidualMemory(8, 3), ResidualMemory(8, 3)
    memory.weight.normal_()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.weight, memory.weight)
    assert other.bfloat16().weight.dtype == torch.bfloat16
    assert not list(memory.parameters())
    assert repr(other) == "ResidualMemory(width=8, outputs=3, pages=1, dtype=bfloat16)"


def _filled(pages, **options):
    memory = ResidualMemory(8, 3, **options)
    for number in range(pages):
        assert number == 0 or memory.open() == number
        memory.page(number).fill_(number + 1)
    return memory


def test_pages_do_not_move_and_begin_at_zero():
    memory = ResidualMemory(8, 3)
    place = memory.table.data_ptr()
    memory.page(0).fill_(7)
    assert memory.open() == 1 and memory.open() == 2 and not memory.weight[8:].any()
    assert memory.table.data_ptr() == place and memory.weight.shape == (24, 3) and memory.weight[:8].eq(7).all()
    assert memory.numbers == [0, 1, 2]
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=f"the memory has pages 0 .. 2, got {wrong}"):
            memory.page(wrong)


def test_a_page_that_was_given_back_is_used_again_zeroed():
    memory = _filled(3)
    memory.close(1)
    assert memory.numbers == [0, 2]
    assert memory.open() == 1 and not memory.page(1).any() and memory.page(2).eq(3).all() and memory.open() == 3


def test_untouched_pages_take_no_memory():
    """A table of 64 pages of 32 MB; what is written is resident, and little else."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = ResidualMemory(4096, 2048)
    memory.open()
    assert len(memory.table) == 64 * 4096 and not memory.weight.any()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300 << 20


def test_there_are_no_more_than_max_pages():
    memory = _filled(2, max_pages=2)
    assert memory.full and len(memory.table) == 16
    with pytest.raises(IndexError, match="all of max_pages = 2 are open"):
        memory.open()
    assert memory.copy_page(0) is None
    memory.close(0)
    assert not memory.full and memory.open() == 0
    with pytest.raises(ValueError, match="max_pages must be at least 1, got 0"):
        ResidualMemory(8, 3, max_pages=0)


def test_a_full_table_gives_way_to_a_larger_one():
    memory = _filled(64)
    old = memory.table
    assert memory.open() == 64 and memory.table is not old and len(memory.table) == 128 * 8
    for number in range(64):
        assert memory.page(number).eq(number + 1).all() and old[number * 8 : number * 8 + 8].eq(number + 1).all()
    assert not memory.page(64).any()


def test_a_memory_that_was_read_has_room_for_further_pages_where_it_lies():
    memory = ResidualMemory(8, 3)
    memory.empty(100)
    memory.weight.fill_(7)
    place = memory.table.data_ptr()
    assert memory.open() == 100 and memory.table.data_ptr() == place, "the hundred pages were not moved"
    assert memory.weight[:800].eq(7).all() and not memory.page(100).any()


def test_where_there_is_no_room_for_twice_the_pages_there_is_for_these(monkeypatch):
    """As on a system that promises no more memory than it has."""
    memory, reserved, asked = ResidualMemory(8, 3), ResidualMemory._reserved, []

    def little(self, pages, least=1):
        asked.append(least)
        if least > 100:
            raise RuntimeError("can't allocate memory")
        return reserved(self, pages, least)

    monkeypatch.setattr(ResidualMemory, "_reserved", little)
    memory.empty(100)
    assert asked == [200, 100] and memory.pages == 100 and not memory.weight.any()
    assert len(ResidualMemory(8, 3, max_pages=2).table) == 16


def test_rows_that_are_about_to_be_written_are_not_zeroed_before():
    memory = ResidualMemory(8, 3)
    memory.weight.fill_(7)
    memory.empty(2, but=torch.tensor([1, 5]).int())
    assert memory.weight[[1, 5]].eq(7).all() and memory.weight.ne(0).any(dim=1).sum() == 2


def test_a_copy_of_a_page_is_no_page_of_its_own():
    memory = _filled(2)
    assert memory.copy_page(1) == 2 and memory.page(2).eq(2).all() and memory.numbers == [0, 1]
    memory.close(2)
    assert memory.numbers == [0, 1] and memory.open() == 2 and not memory.page(2).any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_copies_and_states_hold_what_is_open(copied):
    memory = _filled(3)
    memory.copy_page(0)
    other = copied(memory)
    assert torch.equal(other.weight, memory.weight) and other.numbers == [0, 1, 2] and other.open() == 3
    other.page(0).zero_()
    assert memory.page(0).eq(1).all()
    assert len(pickle.dumps(memory)) < 2 * memory.weight.nbytes + 4000, "all of the table went along"
    assert list(memory.state_dict()) == ["weight"] and len(memory.state_dict()["weight"]) == 32


@pytest.mark.parametrize("present", [1, 2, 80])
def test_a_state_of_more_or_fewer_pages(present):
    memory, other = _filled(3), _filled(present)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.weight, memory.weight) and other.pages == 3
    large = _filled(70)
    other.load_state_dict(large.state_dict())
    assert torch.equal(other.weight, large.weight)
    with pytest.raises(RuntimeError, match=r"expected pages of \[8, 3\], got \[9, 3\]"):
        other.load_state_dict({"weight": torch.zeros(9, 3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})
    with pytest.raises(RuntimeError, match="has 3 pages, max_pages is 2"):
        _filled(1, max_pages=2).load_state_dict(memory.state_dict())


def test_other_types_and_shared_memory_take_the_open_pages():
    memory = _filled(2)
    assert memory.half().page(1).eq(2).all() and memory.table.dtype == torch.float16 and memory.open() == 2
    memory.share_memory()
    assert memory.table.is_shared() and memory.weight.shape == (24, 3) and memory.page(1).eq(2).all()
    assert memory.to("meta").table.device.type == "meta"


def test_the_deterministic_mode_writes_to_no_page_that_is_not_open():
    torch.use_deterministic_algorithms(True)
    try:
        memory = ResidualMemory(512, 512)  # a table so large that its memory is new from the system
    finally:
        torch.use_deterministic_algorithms(False)
    assert not memory.table[512:1024].isnan().any()
