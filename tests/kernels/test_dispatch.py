"""The ops' public faces are served by the Triton kernels, and say so."""

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig, backends, ops
from memoir_fast.errors import BackendError
from memoir_fast.reference import masked_linear as reference


class Layer(torch.nn.Module):
    """A small edited layer: a base product, a memory, a store of masks, and the route that a prompt takes."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.base, self.memory = draw.normal(96, 40), torch.nn.Parameter(draw.normal(96, 40))
        self.permutation, self.mu, self.k = draw.permutation(96), draw.normal(96) / 10, 24
        self.store = torch.zeros((4, 4), dtype=torch.int32, device=draw.device)
        self.columns = torch.zeros((4, 24), dtype=torch.int32, device=draw.device)
        self.count = torch.zeros((), dtype=torch.int32, device=draw.device)

    def mask(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        marked = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return ops.tophash(ops.prompt_feature(x, marked, self.mu), self.k, self.permutation)

    def edit(self, x: torch.Tensor) -> None:
        mask, columns = self.mask(x)
        self.store[self.count], self.columns[self.count] = mask[0], columns[0]
        self.count += 1

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        route, _ = ops.mask_match(self.mask(x)[0], self.store, self.count, 16)
        return x @ self.base + ops.masked_linear(x, self.memory, self.columns, route), route


def test_a_module_runs_through_triton_from_the_prompt_to_the_gradient(draw, monkeypatch):
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "triton")
    backends._last.clear()
    layer, edited, other = Layer(draw), draw.normal(1, 20, 96), draw.normal(1, 20, 96)
    layer.edit(edited)
    y, route = layer(torch.cat([other, edited]))
    assert route.tolist() == [-1, 0]
    expected = reference.masked_linear(edited, layer.memory.detach(), layer.columns, route[1:])
    torch.testing.assert_close(y[1:] - edited @ layer.base, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(y[:1], other @ layer.base)
    y.sum().backward()
    active = layer.memory.grad.ne(0).any(1).nonzero().flatten()
    assert torch.equal(active.int(), layer.columns[0])
    with torch.no_grad():
        ops.memory_update(layer.memory, layer.columns[0], draw.normal(3, 24), draw.normal(3, 40))
        ops.masked_linear_add_(y.detach(), torch.cat([other, edited]), layer.memory, layer.columns, route)
    ops.mask_overlap(layer.store, layer.store)
    ops.mask_columns(layer.store, 4)
    ops.code_route(route[:, None], route[:, None], route, route)
    ops.route_rows(layer.store, torch.zeros_like(route[:1]).expand(len(layer.store)), route, 4, 24)
    assert backends.last_used() == dict.fromkeys(backends.OPS, "triton")


def test_a_language_model_generates_through_triton(draw, tiny_llama, tiny_tokenizer, monkeypatch):
    prompt = "The capital of France is"
    memoir = Memoir.attach(tiny_llama.to(draw.device), tiny_tokenizer, MemoirConfig(tau=0.9, routing="paper"))
    mask, columns = memoir.hash(prompt)
    memoir.layer.store.append(mask)
    memoir.layer.memory.weight.normal_(generator=torch.Generator(draw.device).manual_seed(0))
    given = {name: value.to(draw.device) for name, value in tiny_tokenizer(prompt, return_tensors="pt").items()}

    def generate(backend):
        monkeypatch.setenv("MEMOIR_FAST_BACKEND", backend)
        backends._last.clear()
        return tiny_llama.generate(**given, max_new_tokens=4, do_sample=False), backends.last_used()

    through_triton, used = generate("triton")
    assert memoir.last_routes[0].edit_id == 0
    assert used == dict.fromkeys(
        ("prompt_feature", "tophash", "mask_match", "route_rows", "masked_linear_add_"), "triton"
    )
    by_reference, used = generate("reference")
    assert set(used.values()) == {"reference"}
    assert torch.equal(through_triton, by_reference)
    with memoir.disabled():
        assert not torch.equal(through_triton, generate("reference")[0]), "the memory changed nothing"


def test_what_triton_cannot_serve_is_refused_with_the_reason(draw, monkeypatch):
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "triton")
    x, memory = draw.normal(1, 1, 4).double(), draw.normal(4, 4).double()
    index = torch.zeros((1, 1), dtype=torch.int32, device=draw.device)
    with pytest.raises(BackendError, match="triton: serves float16, bfloat16 and float32, got float64"):
        ops.masked_linear(x, memory, index, index[0])
