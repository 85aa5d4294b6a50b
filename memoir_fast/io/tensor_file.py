"""Tensors as the bytes of a safetensors file, of which little is in memory at once.

The library makes the whole file in memory before it writes it. A memory's pages may be most of what the machine has.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

_NAMES = {  # from the last to the first in a file
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_NAMES)}


class Parts(NamedTuple):
    """A tensor that is made part by part, of its rows, whenever it is asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    made: Callable[[], Iterator[torch.Tensor]]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Parts":
        """A tensor as its one part."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: iter([tensor]))


class TensorFile:
    """The bytes of a safetensors file, to be gone through as often as need be; the same as the library would write.

    Args:
        tensors (mapping of str to Tensor or Parts): on any device; they change no more as long as this is used.

    Raises:
        KeyError: a tensor has a dtype that no memory has.

    Example:
        >>> import safetensors.torch, torch
        >>> from memoir_fast.io.tensor_file import TensorFile
        >>> tensors = {"one": torch.ones(3), "many": torch.arange(4).int()}
        >>> b"".join(TensorFile(tensors)) == safetensors.torch.save(tensors, {"format": "pt"})
        True
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor | Parts]) -> None:
        given = {name: one if isinstance(one, Parts) else Parts.of(one) for name, one in tensors.items()}
        order = sorted(given, key=lambda name: (-_RANK[given[name].dtype], name))
        self._tensors = [given[name] for name in order]
        head: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, one in zip(order, self._tensors, strict=True):
            start, end = end, end + one.dtype.itemsize * torch.Size(one.shape).numel()
            head[name] = {"dtype": _NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self.size = len(self._head) + end
        """Bytes of the file."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for one in self._tensors:
            for part in one.made():
                if part.numel():
                    yield part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
