"""Large tables on the CPU are asked for in huge pages, and are zeros like any other."""

import mmap
from pathlib import Path

import pytest
import torch

from memoir_fast.modules import MaskStore, huge_pages

needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="this system has no transparent huge pages",
)


def asked_for(tensor: torch.Tensor) -> bool:
    """Whether the middle of the tensor lies in memory that was advised to be huge pages: the flag `hg` of its area."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError("the tensor lies in no area of this process")


@needs_huge_pages
def test_large_tables_are_asked_for_in_huge_pages() -> None:
    large = huge_pages.zeros((9 << 20,), torch.uint8)
    assert asked_for(large) and not large.any()
    plain = mmap.mmap(-1, 9 << 20)  # new from the system, where a tensor's memory may be what such a table has left
    assert not asked_for(torch.frombuffer(plain, dtype=torch.uint8))


@needs_huge_pages
def test_a_large_store_is_before_and_after_it_grows() -> None:
    store = MaskStore(14336, k=2, max_edits=8192)
    assert asked_for(store.masks)
    store = MaskStore(14336, k=2)
    store.extend(torch.ones(8192, 448, dtype=torch.int32))
    assert asked_for(store.masks) and bool((store.masks[:8192] == 1).all())


def test_small_tables_and_other_devices_are_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "advise", lambda *_: pytest.fail("asked for a table of 16 bytes"))
    assert torch.equal(huge_pages.zeros((2, 2), torch.int32), torch.zeros(2, 2, dtype=torch.int32))
    assert huge_pages.zeros((1 << 22, 16), torch.int32, "meta").shape == (1 << 22, 16)


def test_a_system_without_huge_pages_gives_ordinary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not huge_pages.zeros((9 << 20,), torch.uint8).any()


def test_advice_is_passed_on_where_the_system_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *given: asked.append(given))
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    huge_pages.advise("MADV_HUGEPAGE", 4096, 8192)
    huge_pages.advise("MADV_HUGEPAGE", 4096, -4096)  # of a tensor within one page
    huge_pages.advise("MADV_OF_ANOTHER_SYSTEM", 4096, 8192)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    huge_pages.advise("MADV_HUGEPAGE", 4096, 8192)
    assert asked == [(4096, 8192, 14)]
