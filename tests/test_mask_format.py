"""How a mask is packed: known words, every width, there and back."""

import pytest
import torch

from memoir_fast.mask_format import BITS, pack, unpack, words


@pytest.mark.parametrize(("width", "expected"), [(1, 4), (127, 4), (128, 4), (129, 8), (1536, 48), (14336, 448)])
def test_words_are_whole_pieces_of_sixteen_bytes(width, expected):
    assert words(width) == expected and 4 * words(width) % 16 == 0


def test_known_words():
    bits = torch.zeros(2, 70, dtype=torch.bool)
    bits[0, [0, 2, 31, 32, 69]] = True
    assert pack(bits).tolist() == [[5 - 2**31, 1, 1 << 5, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("width", [1, 31, 32, 33, 63, 65, 128, 1000])
def test_there_and_back(width):
    bits = torch.rand(5, width) < 0.4
    packed = pack(bits)
    assert packed.dtype == torch.int32 and packed.shape == (5, words(width))
    assert torch.equal(unpack(packed, width), bits)
    assert not unpack(packed, BITS * words(width))[:, width:].any(), "bits past the width are 0"
