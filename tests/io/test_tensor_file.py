"""`TensorFile`: the bytes that safetensors would write, little of them at once."""

import pytest
import safetensors.torch
import torch

from memoir_fast.io import checkpoint, pages
from memoir_fast.io.tensor_file import Parts, TensorFile

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.float64,
    torch.int64,
)


def drawn(dtype, *shape):
    return torch.randint(0, 2, shape).to(dtype)


@pytest.mark.parametrize("names", ["abcdefgh", "hgfedcba", ["é", '"', "\\", "~", "\t", "A", "a b", ""]])
def test_it_is_the_file_that_the_library_writes(names):
    tensors = {name: drawn(dtype, 3, 1 + place) for place, (name, dtype) in enumerate(zip(names, DTYPES, strict=True))}
    tensors |= {"empty": torch.zeros(0, 4), "number": torch.tensor(7).int(), "across": torch.randn(4, 3).T}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    file = TensorFile(tensors)
    content = b"".join(file)
    assert content == safetensors.torch.save(whole, {"format": "pt"}) == b"".join(file) and file.size == len(content)


def test_a_tensor_in_parts_is_the_same_file():
    whole = torch.randn(10, 4).bfloat16()
    parts = Parts(whole.dtype, tuple(whole.shape), lambda: iter(whole.split([3, 0, 7])))
    assert b"".join(TensorFile({"x": parts})) == b"".join(TensorFile({"x": whole}))


def test_of_no_type_of_ours():
    with pytest.raises(KeyError, match="complex64"):
        TensorFile({"x": torch.zeros(2, dtype=torch.complex64)})


def test_a_memory_is_saved_page_by_page(memoir, tmp_path):
    memory, store = memoir.layer.memory, memoir.layer.store
    while memory.pages < 3:
        memory.open()
    memory.weight.normal_()
    store.page[:3] = torch.tensor([1, 0, 2])
    found = pages.tensors(memoir.layer)
    parts = [part.nbytes for part in found["memory_values"].made()]
    assert parts == [memory.page(0).nbytes] * 3
    memoir.save_pretrained(tmp_path / "other")
    values = checkpoint.read(tmp_path / "other").tensors["memory_values"]
    assert torch.equal(values, memory.weight)
