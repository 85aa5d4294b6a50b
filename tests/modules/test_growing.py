"""Large tables on the CPU grow where they lie, also those on pages of a file; what views see stays."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from memoir_fast.modules import MaskStore, ResidualMemory, growing
from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.views import View, Views

WIDTH, K, LARGE = 14336, 8, 5000  # 5,000 masks of that width are a large table

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc/self/smaps")


def rows(first: int, last: int) -> torch.Tensor:
    """Rows that tell which they are, as [n, W]."""
    return torch.arange(first + 1, last + 1, dtype=torch.int32)[:, None].expand(-1, WIDTH // 32).contiguous()


def mapped_from(tensor: torch.Tensor) -> str:
    """The file that the middle of a tensor is mapped from; "" where it is from none."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in first.split("-"))
        if begin <= address < end:
            return rest[4] if len(rest) > 4 else ""
    raise AssertionError("the tensor lies in no area of this process")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file of masks, with numbers that are not zero before and behind them."""
    path = tmp_path / "masks.safetensors"
    other = torch.full((3001,), -1, dtype=torch.int32)
    safetensors.torch.save_file({"a": other, "masks": rows(0, LARGE), "z": other.clone()}, path)
    return path


def test_a_large_store_grows_in_place() -> None:
    store = MaskStore(WIDTH, K)
    store.extend(rows(0, LARGE))
    place, capacity = store.masks.data_ptr(), len(store.masks)
    store.set_min_overlap(3, 17)
    store.extend(rows(LARGE, 2 * LARGE))
    store.extend(rows(2 * LARGE, 3 * LARGE), page=2)
    assert store.masks.data_ptr() == place and len(store.masks) > 2 * capacity
    assert torch.equal(store.masks[: 3 * LARGE], rows(0, 3 * LARGE)) and not store.masks[3 * LARGE :].any()
    assert store.min_overlap[16:19].tolist() == [K, 3, K] and len(store.min_overlap) == len(store.masks)
    assert store.page[2 * LARGE - 1 : 2 * LARGE + 1].tolist() == [0, 2]


def test_codes_grow_in_place() -> None:
    store = CodeStore(WIDTH, K, min_overlap=1)
    least = torch.full((LARGE,), 4, dtype=torch.int32)
    store.add(0, rows(0, LARGE), least, least)
    place = store.codes.data_ptr()
    store.add(1, rows(LARGE, 2 * LARGE), least, least)
    assert store.codes.data_ptr() == place and torch.equal(store.codes[: 2 * LARGE], rows(0, 2 * LARGE))
    assert store.owner[LARGE - 1 : LARGE + 1].tolist() == [0, 1] and store.owner[2 * LARGE :].eq(-1).all()


def test_new_rows_hold_the_filling_also_where_a_longer_table_was() -> None:
    table = growing.grown(torch.zeros(4, dtype=torch.int32), 0, 3 << 20, -1)
    longer = growing.grown(table, 2, 4 << 20, -1)
    assert longer.data_ptr() == table.data_ptr() and longer[2:].eq(-1).all()
    longer[(3 << 20) + 5] = 9
    again = growing.grown(table, 2, 5 << 20)
    assert again.data_ptr() == table.data_ptr() and not again[3 << 20 :].any()


def test_a_store_without_rows_gets_a_table_of_its_own() -> None:
    table = growing.grown(torch.zeros(4, dtype=torch.int32), 0, 3 << 20)
    assert growing.grown(table, 0, 3 << 20).data_ptr() != table.data_ptr()


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_where_the_system_reserves_nothing_rows_are_copied(error: type[Exception], monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(growing._Range, "__new__", refuse)
    store = MaskStore(WIDTH, K)
    store.extend(rows(0, LARGE))
    before = store.masks
    store.extend(rows(LARGE, 2 * LARGE))
    assert store.masks.data_ptr() != before.data_ptr()
    assert torch.equal(store.masks[: 2 * LARGE], rows(0, 2 * LARGE)) and not store.masks[2 * LARGE :].any()


def test_a_copy_has_its_own_rows_and_no_more_bytes_than_it_has_room_for() -> None:
    store = MaskStore(WIDTH, K)
    store.extend(rows(0, LARGE))
    for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        other.delete(7)
        other.extend(rows(LARGE, 2 * LARGE))
        assert torch.equal(other.masks[LARGE : 2 * LARGE], rows(LARGE, 2 * LARGE))
        assert other.masks.untyped_storage().nbytes() == other.masks.nbytes
    assert torch.equal(store.masks[:LARGE], rows(0, LARGE)) and not store.masks[LARGE:].any()


def test_a_view_goes_on_with_its_rows_while_the_store_grows_and_loses_some() -> None:
    store, codes, views = MaskStore(WIDTH, K), CodeStore(WIDTH, K, min_overlap=1), Views()
    own = torch.full((LARGE,), 4, dtype=torch.int32)
    store.extend(rows(0, LARGE))
    codes.add(0, rows(0, LARGE), own, own)
    now, older, newer = View(store, ResidualMemory(WIDTH, 1), codes), views.begin(), None
    for first in (LARGE, 2 * LARGE):
        views.keep(now, page=None, rows=False)
        store.extend(rows(first, first + LARGE))
        codes.add(1, rows(first, first + LARGE), own, own)
        newer = newer or views.begin()
    views.keep(now, page=None, rows=True)
    store.delete(11)
    codes.remove(0)
    for generation, count in ((older, LARGE), (newer, 2 * LARGE)):
        seen = generation.view
        assert seen is not None and seen.codes is not None and len(seen.store.masks) == len(seen.store.min_overlap)
        assert int(seen.store.count) == int(seen.codes.count) == count
        assert torch.equal(seen.store.masks[:count], rows(0, count))
        assert torch.equal(seen.codes.codes[:count], rows(0, count)) and seen.codes.owner[:LARGE].eq(0).all()
    assert not store.masks[11].any() and not codes.codes[:LARGE].any()


@on_linux
def test_rows_on_pages_of_a_file_stay_there_as_more_are_added(saved: Path) -> None:
    content, store = saved.read_bytes(), MaskStore(WIDTH, K)
    store.restore(safetensors.torch.load_file(saved)["masks"])
    place = store.masks.data_ptr()
    assert mapped_from(store.masks) == str(saved)
    store.extend(rows(LARGE, 2 * LARGE))
    assert store.masks.data_ptr() == place and mapped_from(store.masks[:LARGE]) == str(saved)
    assert torch.equal(store.masks[: 2 * LARGE], rows(0, 2 * LARGE)) and not store.masks[2 * LARGE :].any()
    store.delete(3)
    assert not store.masks[3].any() and saved.read_bytes() == content


@on_linux
def test_what_is_behind_a_table_in_its_file_is_not_taken_for_rows(saved: Path) -> None:
    store = MaskStore(WIDTH, K)
    store.restore(safetensors.torch.load_file(saved)["masks"])
    store._grow(2 * LARGE)
    assert not store.masks[LARGE:].any()


@on_linux
@pytest.mark.parametrize("change", ["written", "removed", "replaced", "small", "no mapping"])
def test_a_table_that_the_file_does_not_say_stays_as_it_is(change: str, saved: Path, monkeypatch) -> None:
    table = safetensors.torch.load_file(saved)["masks"]
    if change == "written":
        table[1] = 0
    elif change == "small":
        table = table[:9]
    elif change == "no mapping":
        monkeypatch.setattr(growing, "_map_file", lambda: None)
    else:
        saved.unlink()
    if change == "replaced":
        Path(f"{saved} (deleted)").write_bytes(bytes(table.nbytes + 9999))  # as the kernel tells of a removed file
    assert growing.adopted(table) is table
    assert growing.adopted(torch.zeros(9 << 20, dtype=torch.uint8)).any().logical_not()
