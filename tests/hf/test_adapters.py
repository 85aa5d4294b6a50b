"""PEFT beside a memory: put on before it or after it, switched, merged, saved; and soft prompts, which are refused."""

from types import SimpleNamespace

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.adapters import require_no_soft_prompt

SOFT = {"PrefixTuningConfig", "PromptTuningConfig"}


@pytest.fixture
def adapted(tool):
    """Tools of the support table: a check's prompts, an attach like its own, and PEFT around a model."""
    peft = pytest.importorskip("peft", reason="needs the package peft, which is not installed")
    bases, checks = tool("bases"), tool("support_checks")
    check = checks.Check(bases.plain(), "llama")

    def attach(model):
        config = MemoirConfig(recipe=checks.RECIPE, tau=checks.TAU)
        memoir = Memoir.attach(model, checks.tokenizer(), config, checks.irrelevant_prompts()[:40])
        for prompt, target in checks.EDITS:
            memoir.edit(prompt, target)
        return memoir

    def follows(model, before):
        """Whether prompts of edits get other logits, and others the same bits."""
        now = check.logits(model)
        return checks.same(now[2:], before[2:]) and not any(map(torch.equal, now[:2], before))

    return SimpleNamespace(
        peft=peft, bases=bases, tokenizer=checks.tokenizer(), logits=check.logits, attach=attach, follows=follows,
        same=checks.same, plain=check.before,
    )  # fmt: skip


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["q_proj", "down_proj"]], ids=["others", "the layer"])
def test_adapters_are_switched_merged_and_taken_off(adapted, targets):
    with_lora = adapted.bases.peft(target_modules=targets)
    before = adapted.logits(with_lora)
    memoir = adapted.attach(with_lora)
    assert adapted.follows(with_lora, before)
    with with_lora.disable_adapter():
        assert adapted.same(adapted.logits(with_lora)[2:], adapted.plain[2:])
    now = adapted.logits(with_lora)
    merged = with_lora.merge_and_unload()
    alone = adapted.bases.peft(target_modules=targets).merge_and_unload()
    assert adapted.follows(merged, adapted.logits(alone)), "the memory is kept where adapters are merged"
    assert type(memoir.layer.base) is torch.nn.Linear
    for own, found in zip(now, adapted.logits(merged), strict=True):
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
    memoir.edit("The river of", "red")
    memoir.detach()
    assert adapted.same(adapted.logits(merged), adapted.logits(alone))


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["q_proj", "down_proj.base"]], ids=["others", "the layer"])
def test_adapters_may_come_after_the_memory(adapted, targets, tmp_path):
    own = [name.removesuffix(".base") for name in targets]
    layer = None if own == targets else "model.layers.3.mlp."
    plain = [f"{layer}{name}" if layer and name == "down_proj" else name for name in own]
    before = adapted.logits(adapted.bases.peft(target_modules=plain))
    model = adapted.bases.plain()
    memoir = adapted.attach(model)
    with_lora = adapted.bases.peft(model=model, target_modules=targets)
    assert adapted.follows(with_lora, before)
    now = adapted.logits(with_lora)
    with_lora.save_pretrained(tmp_path / "adapter")
    memoir.save_pretrained(tmp_path / "memory")
    if layer is None:
        loaded = adapted.peft.PeftModel.from_pretrained(adapted.bases.plain(), tmp_path / "adapter").eval()
        assert adapted.same(adapted.logits(loaded), before), "an adapter's files know of no memory"
        Memoir.from_pretrained(loaded, adapted.tokenizer, tmp_path / "memory")
        assert adapted.same(adapted.logits(loaded), now)
    with_lora.unload()
    assert adapted.follows(model, adapted.plain)
    assert memoir.detach() is model and adapted.same(adapted.logits(model), adapted.plain)


def test_the_edited_layer_itself_takes_no_adapter_afterwards(adapted):
    model = adapted.bases.plain()
    adapted.attach(model)
    with pytest.raises(ValueError, match="Target module MemoirLinear"):  # PEFT's; docs/your-model.md says what to do
        adapted.bases.peft(model=model, target_modules=["down_proj"])


@pytest.mark.parametrize("kind", sorted(SOFT))
def test_soft_prompts_are_refused_also_afterwards(adapted, kind):
    model = adapted.bases.plain()
    adapted.attach(model)
    soft = adapted.bases.peft(kind, model, num_virtual_tokens=2)
    with pytest.raises(UnsupportedModelError, match=f"{kind} puts virtual tokens in front of every prompt"):
        soft.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=1)


def test_what_is_asked_of_peft_is_told_by_what_it_is():
    require_no_soft_prompt(SimpleNamespace(active_peft_config=SimpleNamespace(is_prompt_learning=False)))
    require_no_soft_prompt(object())
    with pytest.raises(UnsupportedModelError, match="SimpleNamespace puts virtual tokens"):
        require_no_soft_prompt(SimpleNamespace(active_peft_config=SimpleNamespace(is_prompt_learning=True)))
