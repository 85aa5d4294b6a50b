"""PEFT beside a memory: put on before it or after it, switched, merged, saved; and soft prompts, which are refused."""

from types import SimpleNamespace

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.adapters import require_no_soft_prompt
from memoir_fast.modules import MemoirLinear

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


def test_adapters_on_other_layers_may_come_after_the_memory(adapted, tmp_path):
    targets = ["q_proj", "up_proj"]
    before = adapted.logits(adapted.bases.peft(target_modules=targets))
    model = adapted.bases.plain()
    memoir = adapted.attach(model)
    with_lora = adapted.bases.peft(model=model, target_modules=targets)
    assert adapted.follows(with_lora, before)
    _loads_with_its_memory(adapted, with_lora, memoir, before, tmp_path)
    with_lora.unload()
    assert adapted.follows(model, adapted.plain)
    assert memoir.detach() is model and adapted.same(adapted.logits(model), adapted.plain)


def _loads_with_its_memory(adapted, with_adapter, memoir, before, folder):
    """An adapter's files know of no memory, and with both a fresh model answers as this one."""
    now = adapted.logits(with_adapter)
    with_adapter.save_pretrained(folder / "adapter")
    memoir.save_pretrained(folder / "memory")
    loaded = adapted.peft.PeftModel.from_pretrained(adapted.bases.plain(), folder / "adapter").eval()
    assert adapted.same(adapted.logits(loaded), before)
    Memoir.from_pretrained(loaded, adapted.tokenizer, folder / "memory")
    assert adapted.same(adapted.logits(loaded), now)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_an_adapter_on_the_edited_layer_is_saved_whole_and_others_may_join_it(adapted, dora, tmp_path):
    settings = {"target_modules": ["q_proj", "down_proj"], "use_dora": dora}
    with_adapter = adapted.bases.peft(**settings)
    before, names = adapted.logits(with_adapter), list(with_adapter.state_dict())
    memoir = adapted.attach(with_adapter)
    assert list(with_adapter.state_dict()) == names
    _loads_with_its_memory(adapted, with_adapter, memoir, before, tmp_path)
    now = adapted.logits(with_adapter)
    with_adapter.add_adapter("other", adapted.peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with_adapter.set_adapter("other")  # it adds nothing yet
    assert adapted.same(adapted.logits(with_adapter)[2:], adapted.plain[2:]) or dora  # whose norms are rounded
    assert not adapted.same(adapted.logits(with_adapter), now)
    with_adapter.load_adapter(tmp_path / "adapter", "again")
    with_adapter.set_adapter("again")
    assert adapted.same(adapted.logits(with_adapter), now)
    memoir.detach()
    assert adapted.same(adapted.logits(with_adapter), before)


def test_a_memory_is_put_around_adapters_that_do_without_the_layers_own_output(adapted):
    turned = adapted.bases.peft("HRAConfig", target_modules=["down_proj"], r=4, init_weights=False)
    before = adapted.logits(turned)
    memoir = adapted.attach(turned)
    assert adapted.follows(turned, before) and type(memoir.layer.base.base_layer) is torch.nn.Linear
    merged = turned.merge_and_unload()
    assert type(memoir.layer.base) is torch.nn.Linear
    memoir.detach()
    assert not any(isinstance(one, MemoirLinear) for one in merged.modules())


@pytest.mark.parametrize("targets", [["down_proj"], ["q_proj", "down_proj.base"], "all-linear"])
def test_the_edited_layer_itself_takes_no_adapter_afterwards(adapted, targets):
    model = adapted.bases.plain()
    memoir = adapted.attach(model)
    # PEFT's own words, or, where it would put one inside, ours; docs/your-model.md says what to do
    with pytest.raises((ValueError, UnsupportedModelError), match="Target module MemoirLinear|put adapters on first"):
        adapted.bases.peft(model=model, target_modules=targets)
    assert type(memoir.layer.base) is torch.nn.Linear


def test_all_layers_but_the_edited_one_take_adapters_afterwards(adapted):
    model = adapted.attach(adapted.bases.plain()).model
    with_lora = adapted.bases.peft(model=model, target_modules="all-linear", exclude_modules=["base"])
    names = str(list(with_lora.state_dict()))
    assert "3.mlp.up_proj.lora_A" in names and "3.mlp.down_proj.lora_A" not in names


def test_a_new_weight_for_a_layer_with_a_memory_is_its_base_layers(adapted):
    memoir = adapted.attach(adapted.bases.plain())
    weight = torch.nn.Parameter(torch.zeros_like(memoir.layer.weight))
    memoir.layer.weight = weight
    assert memoir.layer.base.weight is weight is memoir.layer.weight and "weight" not in memoir.layer._parameters


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
