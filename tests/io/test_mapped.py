"""A mapped file is gone through piece by piece, and what was looked at takes no memory any more."""

import mmap
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memoir_fast.io import mapped
from memoir_fast.io.mapped import in_file, pieces

MAPS = Path("/proc/self/smaps")
BYTES = 32 << 20


def _resident(values):
    """Bytes of the file that this process has in memory, where `values` lie."""
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", MAPS.read_text()):
        begin, end = (int(place, 16) for place in part.split(" ", 1)[0].split("-"))
        if begin <= values.data_ptr() < end:
            return 1024 * int(re.search(r"^Rss: +(\d+) kB", part, re.MULTILINE)[1])
    raise AssertionError("the tensor is in no mapping")


@pytest.fixture
def saved(tmp_path):
    values = torch.randn(BYTES // 256, 64)
    save_file({"values": values, "before": torch.zeros(3)}, tmp_path / "file.safetensors")
    return values, load_file(tmp_path / "file.safetensors")["values"]


@pytest.mark.parametrize("rows", [0, 1, 7, 63, 65, 1000])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_all_rows_come_once_and_in_order(rows, at_once):
    values = torch.randn(rows, 5)
    found = list(pieces(values, at_once))
    assert all(len(piece) == 1 or piece.nbytes <= at_once for piece in found)
    assert torch.equal(torch.cat([*found, values[:0]]), values)


def test_pieces_of_given_sizes():
    values = torch.randn(9, 5)
    found = list(pieces(values, sizes=[2, 6, 1]))
    assert [len(piece) for piece in found] == [2, 6, 1] and torch.equal(torch.cat(found), values)


def test_memory_of_its_own_is_left_alone():
    values = torch.randn(BYTES // 256, 64)
    kept = values.clone()
    assert not in_file(values)
    assert sum(len(piece) for piece in pieces(values)) == len(values)
    assert torch.equal(values, kept)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
def test_a_file_whose_name_is_no_text_is_one(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb") as file:
        file.write(bytes(4096))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as area:
        found = in_file(values := torch.frombuffer(area, dtype=torch.int32))
        del values
    assert found


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
def test_a_file_is_let_go_of(saved):
    values, found = saved
    if not in_file(found):
        pytest.skip("this release of safetensors reads files instead of mapping them")
    for sizes in (None, [1000] * (len(values) // 1000) + [len(values) % 1000]):
        for piece, own in zip(pieces(found, sizes=sizes), pieces(values, sizes=sizes), strict=True):
            assert torch.equal(piece, own)
        assert _resident(found) < BYTES / 4
    assert torch.equal(found, values)  # it is read again
    assert _resident(found) > BYTES * 0.9


def test_a_system_that_does_not_say_keeps_it(saved, monkeypatch, tmp_path):
    values, found = saved
    monkeypatch.setattr(mapped, "_MAPS", tmp_path / "missing")
    assert not in_file(found)
    assert torch.equal(torch.cat([piece.clone() for piece in pieces(found)]), values)


def test_a_tensor_beyond_its_mapping_is_not_in_it(saved, monkeypatch, tmp_path):
    _, found = saved
    begin = found.data_ptr()
    monkeypatch.setattr(mapped, "_MAPS", tmp_path / "maps")
    for end, inode, expected in ((BYTES, "77", True), (BYTES // 2, "77", False), (BYTES, "0", False)):
        (tmp_path / "maps").write_text(f"{begin:x}-{begin + end:x} r--p 00000000 fe:00 {inode} /file\n")
        assert in_file(found) is expected
