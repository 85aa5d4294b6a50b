"""Records as bytes: what is packed comes back to the last bit, what no record can hold is refused, on either way."""

import json
import struct

import pytest
import safetensors.torch
import torch

from memoir_fast.io import records

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool]


def through(kind, values, tensors):
    sizes, text, content = records.pack(kind, values, tensors)
    assert records.SIZES.unpack(sizes) == (len(text), len(content))
    return records.unpack(7, text, content)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 5), (2, 3, 4)])
def test_tensors_come_back(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    record = through("edit", {}, {"rows": tensor})
    assert record.tensors["rows"].dtype == dtype and torch.equal(record.tensors["rows"], tensor)
    assert (record.sequence, record.kind, record.values) == (7, "edit", {})


def test_not_a_number_keeps_its_bits():
    bits = torch.tensor([0x7FC00001, 0x7F800000, -1], dtype=torch.int32)
    back = through("edit", {}, {"rows": bits.view(torch.float32)}).tensors["rows"]
    assert torch.equal(back.view(torch.int32), bits)


def test_slices_transposes_and_parameters():
    whole = torch.nn.Parameter(torch.randn(4, 6))
    back = through("edit", {}, {"some": whole[1:3], "turned": whole.t()}).tensors
    assert torch.equal(back["some"], whole[1:3]) and torch.equal(back["turned"], whole.t())
    assert not back["some"].requires_grad
    back["some"].zero_()
    assert whole.detach().all()


def test_values_come_back():
    values = {"prompt": "Ω\n\x1b", "ids": [1, 2], "tau": 0.75, "author": None, "more": {"paraphrases": []}}
    record = through("edit-2", values, {})
    assert (record.kind, record.values, record.tensors) == ("edit-2", values, {})


@pytest.mark.parametrize("kind", ["", "Edit", "2", "a b", "a" * 33, "a\n"])
def test_kinds_are_short_words(kind):
    with pytest.raises(ValueError, match="a kind must be"):
        records.pack(kind, {}, {})
    text = json.dumps({"kind": kind, "values": {}}).encode()
    with pytest.raises(ValueError, match="a kind must be"):
        records.unpack(1, text, b"")


@pytest.mark.parametrize(
    ("tensors", "kind", "reason"),
    [
        ({"a": [1.0]}, TypeError, "the tensor 'a' must be a Tensor, got list"),
        ({"": torch.ones(1)}, ValueError, "name must be printable"),
        ({"a\x1b": torch.ones(1)}, ValueError, r"name must be printable, .*got 'a\\x1b'"),
        ({"a" * 201: torch.ones(1)}, ValueError, "name must be printable, 1 to 200 characters"),
        ({"a": torch.ones([1] * 9)}, ValueError, "at most 8 sides"),
        ({"a": torch.empty(0, 1 << 31)}, ValueError, "each below 2147483648"),
        ({"a": torch.ones(2).to_sparse()}, ValueError, "cannot be kept"),
    ],
)
def test_tensors_that_no_record_holds(tensors, kind, reason):
    with pytest.raises(kind, match=reason):
        records.pack("edit", {}, tensors)


def blob(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "cut off": safetensors.torch.save({"a": torch.ones(8)})[:-1],
    "half a length": b"\0\0\0",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header that is no JSON": blob(b"\xff\xff"),
    "deep header": blob(b'{"a":' * 100_000),
    "unknown type": blob({"a": entry("F99")}, bytes(4)),
    "type that torch lacks": blob({"a": entry("F4", (2,), (0, 1))}, bytes(1)),
    "negative side": blob({"a": entry(shape=(-1,))}, bytes(4)),
    "sides that overflow": blob({"a": entry(shape=(1 << 62, 4), offsets=(0, 0))}),
    "more numbers than bytes": blob({"a": entry(shape=(1000,))}, bytes(4)),
    "fewer numbers than bytes": blob({"a": entry(shape=(1,), offsets=(0, 8))}, bytes(8)),
    "offsets beyond the end": blob({"a": entry(offsets=(1 << 40, (1 << 40) + 4))}, bytes(4)),
    "offsets that overlap": blob({"a": entry(), "b": entry()}, bytes(4)),
    "a hole": blob({"a": entry(offsets=(4, 8))}, bytes(8)),
    "bytes behind the end": blob({"a": entry()}, bytes(5)),
    "control characters in a name": blob({"a\x1b[2J": entry()}, bytes(4)),
    "huge side of an empty tensor": blob({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}),
    "ten thousand sides": blob({"a": entry(shape=[1] * 10_000)}, bytes(4)),
    "truth that is seven": blob({"a": entry("BOOL", (1,), (0, 1))}, b"\7"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors(name):
    text = records.pack("edit", {}, {})[1]
    with pytest.raises(ValueError, match="(the|a) tensor"):
        records.unpack(1, text, HOSTILE[name])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[]", "expected an object of kind and values"),
        (b'{"kind": "edit"}', "expected an object of kind and values"),
        (b'{"kind": "edit", "values": {}, "code": 1}', "expected an object of kind and values"),
        (b'{"kind": ["edit"], "values": {}}', "a kind must be"),
        (b'{"kind": "edit", "values": []}', "values must be an object, got list"),
        (b'{"kind": "edit", "values": {"n": NaN}}', "must be finite"),
    ],
)
def test_texts_that_no_record_has(text, reason):
    with pytest.raises(ValueError, match=reason):
        records.unpack(1, text, b"")
