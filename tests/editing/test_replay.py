"""Steps replayed from a CUDA graph: what is replayed when, and the same edits as without."""

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.editing import fast, replay

EDITS = [("The capital of France is", "Lyon"), ("Water boils at", "noon"), ("The sky is", "green today")]


class StandIn(replay.Differentiated):
    """Captures by keeping the eager way, and replays it into the captured outputs, as a graph does."""

    replays = captured = 0

    def _capture(self, residual):
        self._input = residual.detach().clone()
        losses, gradient = self._eager(self._input)
        self._losses, self._gradient = losses.clone(), gradient().clone()
        self._graph = self
        StandIn.captured += 1
        return True

    def replay(self):
        losses, gradient = self._eager(self._input)
        self._losses.copy_(losses)
        self._gradient.copy_(gradient())
        StandIn.replays += 1


class Refusing(replay.Differentiated):
    """Cannot capture."""

    tries = 0

    def _capture(self, residual):
        Refusing.tries += 1
        self.captures = False
        return False


def _taught(model, tokenizer, batch, kind=None):
    config = MemoirConfig(layer="model.layers.1.mlp.down_proj", k=24, tau=0.9)
    memoir = Memoir.attach(model, tokenizer, config)
    with pytest.MonkeyPatch.context() as patch:
        if kind is not None:
            patch.setattr(fast, "Differentiated", lambda batch, capture: kind(batch, True))
        results = memoir.edit(EDITS, batch=batch, progress=False)
    weight = memoir.layer.memory.weight.clone()
    memoir.detach()
    return weight, [result.steps for result in results]


@pytest.mark.parametrize("batch", [1, 3])
def test_replayed_steps_teach_the_same(make_model, tiny_tokenizer, batch):
    model = make_model("llama")
    weight, steps = _taught(model, tiny_tokenizer, batch)
    StandIn.replays = StandIn.captured = 0
    again, same = _taught(model, tiny_tokenizer, batch, StandIn)
    assert torch.equal(again, weight) and same == steps and weight.any()
    assert 0 < StandIn.captured <= StandIn.replays


def test_what_cannot_be_captured_runs_eagerly_and_is_tried_once(make_model, tiny_tokenizer):
    model = make_model("llama")
    weight, steps = _taught(model, tiny_tokenizer, 3)
    Refusing.tries = 0
    again, same = _taught(model, tiny_tokenizer, 3, Refusing)
    assert torch.equal(again, weight) and same == steps
    assert Refusing.tries == 1


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_on_a_gpu_steps_are_captured(make_model, tiny_tokenizer, batch, monkeypatch):
    model = make_model("llama").cuda()
    made = []

    def noted(batch, capture):
        made.append(replay.Differentiated(batch, capture))
        return made[-1]

    monkeypatch.setattr(fast, "Differentiated", noted)
    weight, _ = _taught(model, tiny_tokenizer, batch)
    assert made and all(one.captures for one in made)
    assert any(one._graph is not None for one in made)
    plain, _ = _taught(model, tiny_tokenizer, batch, lambda batch, _: replay.Differentiated(batch, False))
    assert plain.any()
    torch.testing.assert_close(weight, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_a_failed_capture_leaves_the_generator_usable(make_model, tiny_tokenizer, monkeypatch, caplog):
    model = make_model("llama").cuda()
    plain, _ = _taught(model, tiny_tokenizer, 1)
    eager = replay.Differentiated._eager

    def waits(self, residual):
        found = eager(self, residual)
        found[0].tolist()  # a capture cannot wait for the device
        return found

    monkeypatch.setattr(replay.Differentiated, "_eager", waits)
    with caplog.at_level("INFO", logger="memoir_fast"):
        weight, _ = _taught(model, tiny_tokenizer, 1)
    assert "without CUDA graphs" in caplog.text
    torch.testing.assert_close(weight, plain, rtol=1e-3, atol=1e-4)
    assert torch.rand(4, device="cuda").isfinite().all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.rand(4, device="cuda")
    graph.replay()
