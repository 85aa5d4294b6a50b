"""`UpperLayers`: the blocks behind the edited layer, run alone, give what the whole model gives."""

import pytest
import torch

from memoir_fast.hf.partial_forward import UpperLayers
from memoir_fast.hf.presets import PRESETS, find_layer
from memoir_fast.modules import MemoirLinear

LENGTHS = (9, 4, 12)


def _edited(model, block):
    """Puts a MemoirLinear in the place of a block's MLP output projection."""
    name = PRESETS[model.config.model_type].path.format(block=block)
    parent, _, last = name.rpartition(".")
    layer = MemoirLinear(find_layer(model, name), k=4)
    setattr(model.get_submodule(parent), last, layer)
    return layer


def _inputs():
    width = max(LENGTHS)
    ids = torch.randint(2, 384, (len(LENGTHS), width))
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long()
    positions = mask.bool() & (torch.arange(width) >= 2)
    return ids * mask, mask, positions


def _whole(model, layer, ids, mask, positions, residual):
    """The full model, with the residual added to the layer's output by a hook."""
    hook = layer.register_forward_hook(lambda module, args, output: output + residual)
    try:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[positions]
    finally:
        hook.remove()


@pytest.mark.parametrize("attention", [None, "eager"])
def test_logits_equal_the_whole_models(architecture, attention, make_model, untouched):
    model = make_model(architecture, torch.float64, attention)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    before = untouched(model)
    upper = UpperLayers(model, layer)
    lower = upper.lower(ids, mask)
    assert lower.x.shape == (3, 12, layer.in_features) and lower.hidden.shape == (3, 12, 32)
    none = torch.zeros(3, 12, layer.out_features, dtype=torch.float64)
    with torch.no_grad():
        for residual in (none, torch.randn_like(none)):
            found = upper.logits(lower, residual, positions)
            expected = _whole(model, layer, ids, mask, positions, residual)
            assert found.shape == (int(positions.sum()), 384)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            fewer = lower.select(torch.tensor([False, True, True]))
            found = upper.logits(fewer, residual[1:], positions[1:])
            torch.testing.assert_close(found, expected[int(positions[0].sum()) :], rtol=1e-5, atol=1e-6)
    assert untouched(model) == before


def test_rows_run_by_their_length_give_the_whole_models(architecture, make_model, by_length, untouched):
    model = make_model(architecture, torch.float64)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    before, upper, headed = untouched(model), UpperLayers(model, layer), []
    lower = upper.lower(ids, mask)
    assert [one.width for one in lower.buckets] == sorted(LENGTHS, reverse=True)
    residual = torch.randn(3, 12, layer.out_features, dtype=torch.float64, requires_grad=True)
    assert untouched(model) == before
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: headed.append(1))
    found = upper.logits(lower, residual, positions)
    hook.remove()
    assert headed == [1]  # once for all buckets
    expected = _whole(model, layer, ids, mask, positions, residual.detach())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    fewer = lower.select(torch.tensor([True, False, True]))
    chosen = upper.logits(fewer, residual[[0, 2]], positions[[0, 2]])
    again = torch.cat([found[: int(positions[0].sum())], found[-int(positions[2].sum()) :]])
    torch.testing.assert_close(chosen, again, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), residual)
    assert slope[mask.bool()].any() and not slope[~mask.bool()].any()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("block", [0, 2])
def test_first_and_last_block(kind, block, make_model):
    model = make_model(kind)
    layer, (ids, mask, positions) = _edited(model, block), _inputs()
    upper = UpperLayers(model, layer)
    lower, residual = upper.lower(ids, mask), torch.randn(3, 12, layer.out_features)
    with torch.no_grad():
        found = upper.logits(lower, residual, positions)
    torch.testing.assert_close(found, _whole(model, layer, ids, mask, positions, residual), rtol=1e-4, atol=1e-4)


def test_it_knows_where_a_norm_follows_the_layer(architecture, make_model):
    model = make_model(architecture)
    upper = UpperLayers(model, _edited(model, 1))
    ids, mask, _ = _inputs()
    upper.lower(ids, mask)
    assert upper._straight == (architecture not in ("gemma2", "gemma3_text"))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("split", [False, True])
def test_gradients_equal_the_whole_models(kind, split, make_model, request):
    if split:
        request.getfixturevalue("by_length")
    model = make_model(kind, torch.float64)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    upper = UpperLayers(model, layer)
    lower = upper.lower(ids, mask)
    residual = torch.randn(3, 12, layer.out_features, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(int(positions.sum()), 384, dtype=torch.float64)
    (found,) = torch.autograd.grad((upper.logits(lower, residual, positions) * weight).sum(), residual)
    hook = layer.register_forward_hook(lambda module, args, output: output + residual)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[positions]
    hook.remove()
    (expected,) = torch.autograd.grad((logits * weight).sum(), residual)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-6)
    assert not found[~mask.bool()].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_residual_in_float32_joins_a_model_of_half_precision(dtype, make_model):
    model = make_model("llama", dtype)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    upper = UpperLayers(model, layer)
    lower, residual = upper.lower(ids, mask), torch.randn(3, 12, 32)
    with torch.no_grad():
        found = upper.logits(lower, residual, positions)
        with layer.replacing_output(lambda x, y: (y + residual).to(y.dtype)):
            expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[positions]
    assert found.dtype == dtype
    assert (found - expected).float().norm() < 40 * torch.finfo(dtype).eps * expected.float().norm()


def test_only_the_blocks_behind_the_layer_run(make_model):
    model = make_model("llama", blocks=4)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    ran = []
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    upper = UpperLayers(model, layer)
    lower = upper.lower(ids, mask)
    assert set(ran) == {0, 1}
    ran.clear()
    upper.logits(lower, torch.zeros(3, 12, 32), positions)
    assert ran == [2, 3]
    ran.clear()
    upper.lower(ids, mask)
    assert ran == [0, 1]  # how the layer joins its block was asked once


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_an_exception_leaves_no_patch_behind(kind, error, make_model, untouched):
    model = make_model(kind)
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    upper, before = UpperLayers(model, layer), untouched(model)
    expected = _whole(model, layer, ids, mask, positions, 0.0)
    lower = upper.lower(ids, mask)

    def stop(*_):
        raise error("stop")

    for place, run in (
        (model.model.layers[0], lambda: upper.lower(ids, mask)),
        (model.model.layers[1].mlp, lambda: UpperLayers(model, layer).lower(ids, mask)),
        (model.model.norm, lambda: upper.logits(lower, torch.zeros(3, 12, 32), positions)),
        (model.lm_head, lambda: upper.logits(lower, torch.zeros(3, 12, 32), positions)),
    ):
        hook = place.register_forward_pre_hook(stop)
        with pytest.raises(error, match="stop"):
            run()
        hook.remove()
        assert untouched(model) == before
        assert torch.equal(_whole(model, layer, ids, mask, positions, 0.0), expected)


def test_a_forward_that_was_patched_before_stays_patched(make_model):
    model = make_model("llama")
    layer, (ids, mask, positions) = _edited(model, 1), _inputs()
    block, calls = model.model.layers[0], []
    plain = block.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    block.forward = counted
    upper = UpperLayers(model, layer)
    upper.logits(upper.lower(ids, mask), torch.zeros(3, 12, 32), positions)
    assert block.__dict__["forward"] is counted and calls


def test_a_layer_outside_of_the_blocks_is_refused(make_model):
    model = make_model("llama")
    with pytest.raises(ValueError, match="must lie in a block of the model, one of an nn.ModuleList"):
        UpperLayers(model, MemoirLinear(model.lm_head, 4))
