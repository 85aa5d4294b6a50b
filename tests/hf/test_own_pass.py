import functools
import types

import pytest
import torch

from memoir_fast.hf.own_pass import OwnPass, ancestors, uncompiled

IDS = torch.tensor([[5, 6, 7]])


def _logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_hooks_and_detours_are_laid_on_a_twin(tiny_llama, untouched):
    block, last = tiny_llama.model.layers[1], tiny_llama.model.layers[2]
    before, expected, entered = untouched(tiny_llama), _logits(tiny_llama), []
    through = ancestors(tiny_llama, [block, last])
    assert through == {tiny_llama, tiny_llama.model, tiny_llama.model.layers, block, last}
    with OwnPass(tiny_llama, through) as own:
        assert OwnPass.current() is own
        own.before(block, lambda *_: entered.append("before"))
        own.after(block, lambda *_: entered.append("after"))
        own.instead(last, lambda hidden, **_: hidden)
        assert untouched(tiny_llama) == before and torch.equal(_logits(tiny_llama), expected) and not entered
        assert not torch.equal(_logits(own.model), expected) and entered == ["before", "after"]
        assert own.model.lm_head is tiny_llama.lm_head
    assert OwnPass.current() is None and untouched(tiny_llama) == before


def _patched(module, how):
    """Gives a module a forward of its own, as others do: a bound method, a partial (accelerate) or compiled code."""
    plain = type(module).forward
    if how == "method":
        module.forward = types.MethodType(lambda self, *args, **kwargs: plain(self, *args, **kwargs), module)
    elif how == "partial":
        module.forward = functools.partial(lambda self, *args, **kwargs: plain(self, *args, **kwargs), module)
    elif how == "compiled":
        module.forward = torch.compile(module.forward, fullgraph=True, backend="eager")
    else:
        module.compile(fullgraph=True, backend="eager")


@pytest.mark.parametrize("how", ["method", "partial", "compiled", "in place"])
def test_a_twin_of_a_patched_module_is_passed_through(how, tiny_llama):
    for module in (tiny_llama, tiny_llama.model, tiny_llama.model.layers[1]):
        _patched(module, how)
    entered, block = [], tiny_llama.model.layers[2]
    with OwnPass(tiny_llama, ancestors(tiny_llama, [block])) as own:
        own.before(block, lambda *_: entered.append(torch.compiler.is_compiling()))
        _logits(own.model)
    assert entered == [False]


def test_nothing_compiled_runs_in_a_block_that_says_so(tiny_llama):
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    expected = _logits(tiny_llama)
    tiny_llama.forward = torch.compile(tiny_llama.forward, backend=backend)
    with uncompiled(tiny_llama.modules()):
        with uncompiled(tiny_llama.modules()):
            pass
        assert torch.equal(_logits(tiny_llama), expected) and not traced
    assert torch.equal(_logits(tiny_llama), expected) and traced
    torch._dynamo.reset()
