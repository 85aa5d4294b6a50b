"""A record of a journal, to and from bytes: plain values as JSON, tensors as safetensors. It holds no code."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from memoir_fast.io import strict_json

SIZES = struct.Struct("<IQ")  # bytes of the values, bytes of the tensors; both follow
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LONGEST_NAME, _MOST_SIDES, _LONGEST_SIDE = 200, 8, 1 << 31


@dataclass(frozen=True, eq=False)
class Record:
    """One entry of a journal. What its kind means is not the journal's to know."""

    sequence: int
    """Its number: 1 for the journal's first, and so on."""
    kind: str
    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """On the CPU, each in the dtype and shape that it was appended in."""


def pack(kind: str, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> list[bytes]:
    """A record's bytes, in parts that belong one behind the other.

    Args:
        kind (str): 1 to 32 of a-z, 0-9, _ and -, a letter first.
        values (mapping): what `strict_json.dumps` takes.
        tensors (mapping of str to Tensor): dense, on any device, of any dtype that safetensors knows; names are
            printable.

    Raises:
        TypeError: a tensor is none.
        ValueError: a kind, a name, a value or a tensor that a record cannot hold; the message says which.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"a kind must be 1 to 32 of a-z, 0-9, _ and -, a letter first, got {kind!r}")
    text = strict_json.dumps({"kind": kind, "values": dict(values)})
    return [SIZES.pack(len(text), len(content := _pack_tensors(tensors))), text, content]


def unpack(sequence: int, text: bytes, content: bytes) -> Record:
    """The record that `pack` made these bytes of: the second and the third part.

    Raises:
        ValueError: `pack` never made such.
    """
    outer = strict_json.loads(text)
    if not isinstance(outer, dict) or set(outer) != {"kind", "values"}:
        raise ValueError("expected an object of kind and values")
    kind, values = outer["kind"], outer["values"]
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"a kind must be 1 to 32 of a-z, 0-9, _ and -, a letter first, got {str(kind)[:40]!r}")
    if not isinstance(values, dict):
        raise ValueError(f"values must be an object, got {type(values).__name__}")
    return Record(sequence, kind, values, _unpack_tensors(content))


def _pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    if not tensors:
        return b""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"the tensor {name!r} must be a Tensor, got {type(tensor).__name__}")
        _require_sound(name, tensor)
    try:
        return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"the tensors {', '.join(tensors)} cannot be kept: {error}") from error


def _unpack_tensors(content: bytes) -> dict[str, torch.Tensor]:
    if not content:
        return {}
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, TypeError, RuntimeError, AssertionError, OverflowError) as error:
        raise ValueError(f"the tensors are no safetensors: {type(error).__name__}: {error}") from error
    for name, tensor in tensors.items():
        _require_sound(name, tensor)
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise ValueError(f"the tensor {name!r} holds truth values that are neither 0 nor 1")
    return tensors


def _require_sound(name: Any, tensor: torch.Tensor) -> None:
    """ValueError for a name that cannot be printed, or sides that only a tensor without numbers can have."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a tensor's name must be printable, 1 to {_LONGEST_NAME} characters, got {name!r:.60}")
    if tensor.dim() > _MOST_SIDES or any(side >= _LONGEST_SIDE for side in tensor.shape):
        raise ValueError(f"the tensor {name!r} must have at most {_MOST_SIDES} sides, each below {_LONGEST_SIDE}")
