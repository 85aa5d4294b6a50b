"""What holds of a tensor-parallel model with a memory, on every process; `reference` is what one process found."""

import contextlib
import copy
import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.distributed import DistributedConfig

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.editing.batch import Batch
from memoir_fast.errors import MemoirError, UnsupportedModelError
from memoir_fast.modules import compiled

CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
LAYER = "model.layers.1.mlp.down_proj"
EDITS = [
    ("The capital of France is", "Lyon", ""),
    ("The capital of Italy is", "London", ""),
    ("Who wrote the play?", "A camel", "acme"),
    ("The capital of France is", "Athens", "globex"),
]
SUBJECTS = {"London": "Italy", "Athens": "France"}  # of the edits with these targets
PROMPTS = [
    "The capital of France is",
    "What is the colour of the sky?",
    "Who wrote the play?",
    "The capital of Italy is",
    "The language of the island is Greek. The capital of France is",
]
BANKS = ["globex", None, "acme", "acme", None]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=8, learning_rate=0.2)
CONFIGS = {
    "early": (torch.float32, MemoirConfig(layer=LAYER, k=20, tau=0.5, background=16)),
    "early64": (torch.float64, MemoirConfig(layer=LAYER, k=20, tau=0.5, background=16)),
    "paper": (torch.float64, MemoirConfig(routing="paper", layer=LAYER, k=20, tau=0.9, background=4)),
}


TAUGHT = {  # the first replaces an edit; those of the published loop decay all of a page
    "early64": (
        [("The capital of France is", "Rome"), ("The river runs", "in London")],
        {"batch": 2, "recipe": dataclasses.replace(RECIPE, bar=2.0, enough=None, quiet_bar=9.0)},
    ),
    "paper": (
        [("The language of the island is", "Paris")],
        {"recipe": dataclasses.replace(RECIPES["paper"], prefixes=0, steps=3)},
    ),
}


def load_model(folder, dtype=torch.float32, **plan):
    """The model of a folder; split over the processes where there are several."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    split = {"distributed_config": DistributedConfig(tp_size=size, **{"tp_plan": "auto", **plan})} if size > 1 else {}
    return LlamaForCausalLM.from_pretrained(f"{folder}/model", dtype=dtype, **split).eval()


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(f"{folder}/model")


@contextlib.contextmanager
def counted_collectives():
    """The names of the collective calls that are made in the block."""
    names = ["all_reduce", "all_gather", "broadcast", "all_gather_into_tensor", "broadcast_object_list", "barrier"]
    calls, before = [], {name: getattr(dist, name) for name in names}

    def counting(name):
        def call(*args, **kwargs):
            calls.append(name)
            return before[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name in names:
            setattr(dist, name, before[name])


@torch.no_grad()
def observed(memoir, names=("alone", "batch", "banks", "forced", "disabled")):
    """What a memory does to prompts: alone, in a padded batch, with banks, forced and disabled."""
    model, tokenizer = memoir.model, memoir.tokenizer
    found = {}

    blocks = {"forced": lambda: memoir.routed([0, 0, -1, 2, 3]), "disabled": memoir.disabled}
    for name in names:
        batch = tokenizer(PROMPTS[:1] if name == "alone" else PROMPTS, return_tensors="pt", padding=True)
        given = {"memoir_banks": BANKS} if name == "banks" else {}
        with blocks.get(name, contextlib.nullcontext)():
            how = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
            output = model.generate(**batch, **how, **given)
        found[f"{name} tokens"], found[f"{name} logits"] = output.sequences, torch.stack(output.logits)
        found[f"{name} routes"] = memoir.last_routes
    return found


def codes(memoir):
    """What prompts are searched by: masks, or routing codes."""
    from memoir_fast.core.threshold import prompt_masks

    return prompt_masks(memoir, [*PROMPTS, *(f"{one} It rains today." for one in PROMPTS * 4)])


def taught(memoir, edits, how):
    """What becomes of a memory that is taught further, where it is."""
    results = memoir.edit(edits, **how, progress=False)
    found = {
        "results": [(one.edit_id, one.steps, one.learned, one.replaced) for one in results],
        "losses": [one.loss for one in results],
        "masks": memoir.layer.store.masks[: len(memoir.layer.store)].clone(),
        "pages": [memoir.layer.memory.whole(page).clone() for page in memoir.layer.memory.numbers],
    }
    return found | observed(memoir, ["banks"])


def gradient(memoir):
    """Of a matched prompt's embeddings."""
    embedded = memoir.model.get_input_embeddings()(torch.arange(2, 9)[None]).detach().requires_grad_()
    with memoir.routed(0):
        memoir.model(inputs_embeds=embedded).logits.square().mean().backward()
    return embedded.grad


def same(found, expected, close):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(("logits", "losses", "pages")):
            torch.testing.assert_close(found[name], value, rtol=close, atol=close)
        elif name.endswith(("tokens", "masks")):
            assert torch.equal(found[name], value), f"{name}: {found[name]} is not {value}"
        else:
            assert found[name] == value, f"{name}: {found[name]} is not {value}"


def reference(folder):
    """Makes the model and the memories on one process, and what they do."""
    for name, (dtype, config) in CONFIGS.items():
        memoir = Memoir.attach(load_model(folder, dtype), load_tokenizer(folder), config)
        for prompt, target, bank in EDITS:
            memoir.edit(Edit(prompt, target, bank=bank, subject=SUBJECTS.get(target, "")), recipe=RECIPE)
        memoir.save_pretrained(f"{folder}/{name}")
        expected = {"before": observed(memoir), "codes": codes(memoir), "gradient": gradient(memoir)}
        expected["faded"] = memoir.faded()
        memoir.delete(1)
        torch.save({**expected, "after": observed(memoir, ["batch"])}, f"{folder}/{name}.pt")
    for name in TAUGHT:
        torch.save(taught(attached(folder, name)[0], *TAUGHT[name]), f"{folder}/{name}-taught.pt")


def attached(folder, name):
    dtype, _ = CONFIGS[name]
    memoir = Memoir.from_pretrained(load_model(folder, dtype), load_tokenizer(folder), f"{folder}/{name}")
    return memoir, torch.load(f"{folder}/{name}.pt", weights_only=False)


def check_one_process_says_the_same(folder):
    for name in ("early", "paper"):
        (dtype, _), (memoir, expected) = CONFIGS[name], attached(folder, name)
        close = 1e-4 if dtype == torch.float32 else 1e-9
        assert memoir.layer.memory.page(0).shape[0] == 48 // dist.get_world_size()
        same(observed(memoir), expected["before"], close)
        if name == "paper":
            assert torch.equal(codes(memoir), expected["codes"])
        memoir.save_pretrained(f"{folder}/{name}-saved-by-{dist.get_world_size()}")
        memoir.delete(1)
        same(observed(memoir, ["batch"]), expected["after"], close)


def check_no_collective_more_for_a_token(folder):
    memoir, _ = attached(folder, "early")
    model, ids = memoir.model, load_tokenizer(folder)(PROMPTS[0], return_tensors="pt").input_ids
    counts = []
    for block in (contextlib.nullcontext(), memoir.disabled()):
        with torch.no_grad(), block:
            cache = {CACHE: model(ids, use_cache=True)[CACHE]}
            with counted_collectives() as calls:
                model(ids[:, :1], **cache)
        counts.append((len(calls), memoir.last_routes[0].edit_id))
    assert counts[0][1] == 0 and counts[1][1] == -1
    assert counts[0][0] == counts[1][0] > 0
    model = memoir.detach()
    with torch.no_grad():
        cache = {CACHE: model(ids, use_cache=True)[CACHE]}
        with counted_collectives() as calls:
            model(ids[:, :1], **cache)
    assert len(calls) == counts[0][0]


def check_on_two_codes_are_those_of_the_first_process(folder):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    plain = model(torch.arange(2, 9)[None]).logits
    # what a code is made of may differ in the last bits where processors do; here by another rotation
    memoir = Memoir.attach(model, tokenizer, CONFIGS["early"][1].replace(seed=dist.get_rank()))
    every = [None] * dist.get_world_size()
    own = dict(memoir.layer.code.named_buffers()) | {"mu": memoir.layer.mu}
    dist.all_gather_object(every, {name: buffer.tolist() for name, buffer in own.items()})
    assert all(one == every[0] for one in every)
    assert torch.equal(memoir.model(torch.arange(2, 9)[None]).logits, plain)
    assert torch.equal(memoir.detach()(torch.arange(2, 9)[None]).logits, plain)


def check_codes_and_gradients_are_those_of_one_process(folder):
    memoir, expected = attached(folder, "early64")
    assert torch.equal(codes(memoir), expected["codes"])
    torch.testing.assert_close(gradient(memoir), expected["gradient"], rtol=1e-9, atol=1e-12)


def check_on_two_what_is_refused(folder):
    memoir, _ = attached(folder, "early")
    for refused in (
        lambda: Memoir.open(memoir.model, memoir.tokenizer, f"{folder}/early"),
        lambda: memoir.model.generate_batch([[2, 3, 4]]),
        lambda: memoir.model.init_continuous_batching(),
    ):
        with pytest.raises(MemoirError, match="on several by Memoir.from_pretrained"):
            refused()
    with pytest.raises(MemoirError, match="cannot be copied"):
        copy.deepcopy(memoir.layer.store)
    with pytest.raises(MemoirError, match="no folder"):
        Memoir.from_pretrained(load_model(folder), memoir.tokenizer, f"{folder}/none")
    (Path(folder) / "file").touch()
    with pytest.raises(MemoirError, match="cannot be saved"):  # on all processes, though one writes
        memoir.save_pretrained(f"{folder}/file/below")


def check_on_two_plans_that_are_not_served(folder):
    tokenizer, config = load_tokenizer(folder), CONFIGS["early"][1]
    down = "model.layers.*.mlp.down_proj"
    for plan, layer, message in (
        ({down: "rowwise_split_input"}, LAYER, "is 'rowwise_split_input'; it must be \"rowwise\""),
        ({down: "replicate"}, LAYER, 'Linear that is whole; it must be an nn.Linear whose plan is "rowwise"'),
        ("auto", "model.layers.1.mlp.up_proj", "is 'colwise'; it must be \"rowwise\""),
        ({"model.layers.*.input_layernorm": "sequence_parallel"}, LAYER, "all tokens on every process"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            Memoir.attach(load_model(folder, tp_plan=plan), tokenizer, config.replace(layer=layer))


def check_on_two_wrappers_that_are_not_served(folder):
    tokenizer, config = load_tokenizer(folder), CONFIGS["early"][1]
    whole = LlamaForCausalLM.from_pretrained(f"{folder}/model")
    for model, message in (
        (DistributedDataParallel(copy.deepcopy(whole)), "attach the memory to the model inside, its .module"),
        (fully_shard(whole), "split it by a plan instead"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            Memoir.attach(model, tokenizer, config)


def check_on_two_an_input_that_is_whole_is_refused(folder):
    memoir, _ = attached(folder, "early")
    with pytest.raises(UnsupportedModelError, match="of its 48 inputs, got 48"):
        memoir.layer(torch.zeros(1, 3, 48))


def check_on_two_routes_are_decided_by_the_first_process(folder):
    memoir, expected = attached(folder, "early")
    if dist.get_rank():
        memoir.layer.code.projection.neg_()  # as if its own residual stream said something else
    same(observed(memoir, ["batch"]), {k: v for k, v in expected["before"].items() if k.startswith("batch")}, 1e-4)


def check_on_two_compiled_passes_are_refused(folder):
    memoir, _ = attached(folder, "early")
    with pytest.MonkeyPatch.context() as patched:  # the compiler itself takes 14 s
        patched.setattr(compiled, "tracing", lambda: True)
        with pytest.raises(MemoirError, match="cannot be compiled with its memory"):
            memoir.layer(torch.zeros(1, 3, memoir.layer.part.inputs))


def check_on_two_memories_are_merged_and_calibrated(folder):
    memoir, expected = attached(folder, "early")
    assert memoir.faded() == expected["faded"]
    memoir.delete_bank("acme")
    memoir.delete(1)
    merged = memoir.merge(f"{folder}/early")
    assert len(merged.added) == len(merged.same) == 2
    found = observed(memoir, ["batch", "banks"])
    for name in ("batch", "banks"):  # the edits that came back have other ids, and say what they said
        assert torch.equal(found[f"{name} tokens"], expected["before"][f"{name} tokens"])
    memoir.calibrate([f"{one} It rains {two}." for one in PROMPTS for two in ("here", "there", "now", "never")])
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, (memoir.tau, memoir.layer.codes.min_overlap.tolist()))
    assert every[0] == every[1]


def check_taught_as_on_one_process(folder):
    losses = Batch.losses

    def others(batch, *rows):  # as if this process made another loss of the same pass: it goes by the first one's
        found, apart = losses(batch, *rows)
        return found + 100 * dist.get_rank(), apart

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Batch, "losses", others)
        for name, how in TAUGHT.items():
            memoir, _ = attached(folder, name)
            same(taught(memoir, *how), torch.load(f"{folder}/{name}-taught.pt", weights_only=False), 1e-7)
