"""What `attach` proves on the model at hand, and how it refuses a model in which it does not hold."""

import dataclasses
import importlib.metadata
import types
from dataclasses import dataclass

import pytest
import torch
from cache_name import CACHE
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel

from memoir_fast import RECIPES, Memoir, MemoirConfig, MemoirLinear
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf import routing
from memoir_fast.hf.call import running
from memoir_fast.hf.partial_forward import layer_input

LAYER = "model.layers.1.mlp.down_proj"
CONFIG = MemoirConfig(routing="paper", layer=LAYER, k=20, tau=0.95, background=4)
PROMPT = "The capital of France is"


@dataclass
class Recalled(ModelOutput):
    said: torch.Tensor | None = None
    recollection: object = None


class RenamedDecoder(LlamaModel):
    """Takes and gives its cache by names of its own, in the middle of its positional arguments."""

    def forward(self, input_ids=None, recollection=None, attention_mask=None, position_ids=None, **rest):
        given = {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: recollection, **rest}
        output = LlamaModel.forward(self, input_ids, **given)
        return Recalled(output.last_hidden_state, output.get(CACHE))


class Renamed(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = RenamedDecoder(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None, **rest):
        cache = rest.pop(CACHE, None)
        output = self.model(input_ids, cache, attention_mask, position_ids, use_cache=use_cache)
        return CausalLMOutputWithPast(logits=self.lm_head(output.said), **{CACHE: output.recollection})


class RenamedToo(Renamed):
    """Whose own argument has a name that is not its output's either."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, remains: DynamicCache = None, **rest):
        return super().forward(
            input_ids, attention_mask, position_ids, use_cache=rest.get("use_cache"), **{CACHE: remains}
        )

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {**inputs, "remains": inputs.pop(CACHE)}


def follows(memoir, tokenizer):
    """Whether an edit's route holds through eight tokens of `generate`, against full passes along that route."""
    model, ids = memoir.model, tokenizer(PROMPT, return_tensors="pt").input_ids
    mask, columns = memoir.layer.hash(layer_input(model, memoir.layer, input_ids=ids))
    memoir.layer.store.append(mask[0])
    memoir.layer.memory.weight.normal_()
    found = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=384, pad_token_id=0)
    with torch.no_grad(), memoir.routed(0):
        for _ in range(8):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return torch.equal(found, ids)


def everything(model):
    """All that attach could leave behind in a model."""
    modules = list(model.modules())
    hooks = [len(value) for one in modules for name, value in vars(one).items() if "hooks" in name]
    names = [sorted(vars(one)) for one in modules]
    return [type(one) for one in modules], hooks, names, [one.training for one in modules]


def refuses(model, tokenizer, match):
    before, generator = everything(model), torch.random.get_rng_state()
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        Memoir.attach(model, tokenizer, CONFIG)
    assert everything(model) == before and torch.equal(torch.random.get_rng_state(), generator)
    torch_version = importlib.metadata.version("torch")  # torch.__version__ may have a +cu130 that the package's lacks
    assert f"torch {torch_version}" in str(caught.value) and "transformers 5." in str(caught.value)
    assert "MemoirConfig(check=False)" in str(caught.value)
    return caught.value


def instead(module, forward):
    """Lets `forward(own, *args, **kwargs)` stand in the place of a module's, whose own it is given."""
    own = module.forward
    module.forward = types.MethodType(lambda _, *args, **kwargs: forward(own, *args, **kwargs), module)
    return module


@pytest.mark.parametrize("kind", [Renamed, RenamedToo])
def test_a_cache_by_a_name_that_nobody_has_heard_of(kind, tiny_llama, tiny_tokenizer):
    model = kind(tiny_llama.config).eval()
    model.load_state_dict(tiny_llama.state_dict())
    memoir = Memoir.attach(model, tiny_tokenizer, CONFIG)
    assert follows(memoir, tiny_tokenizer)
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=40, learning_rate=0.1)
    assert memoir.edit("Who wrote the play?", " the author", recipe=recipe, progress=False).loss < 1


def test_a_model_as_it_should_be_and_no_trace_of_the_proof(tiny_llama, tiny_tokenizer):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    before, generator = everything(tiny_llama), torch.random.get_rng_state()
    with torch.inference_mode():
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled() and memoir.last_routes == []
    assert torch.equal(torch.random.get_rng_state(), generator) and running(memoir._router) is None
    assert not any(one.is_inference() for one in memoir.layer.state_dict().values())
    memoir.detach()
    assert everything(tiny_llama) == before
    tiny_llama.eval()
    assert follows(Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG), tiny_tokenizer)


@pytest.mark.parametrize("check", [True, False])
def test_the_check_can_be_left_out(tiny_llama, tiny_tokenizer, check):
    passes = []
    tiny_llama.register_forward_hook(lambda *_: passes.append(1))  # the passes for the background mean end early
    Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG.replace(check=check))
    assert len(passes) == (4 if check else 0)


def test_a_cache_that_is_hidden_in_the_model(tiny_llama, tiny_tokenizer):
    decoder = tiny_llama.model
    decoder.remains = None

    def forward(own, input_ids, attention_mask=None, use_cache=None, **_):
        if decoder.remains is None or input_ids.shape[1] > 1:
            decoder.remains = DynamicCache()
        output = own(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **{CACHE: decoder.remains})
        output[CACHE] = None
        return types.SimpleNamespace(last_hidden_state=output.last_hidden_state)

    instead(decoder, forward)
    instead(
        tiny_llama,
        lambda _, input_ids, attention_mask=None, **rest: CausalLMOutputWithPast(
            logits=tiny_llama.lm_head(decoder(input_ids, attention_mask=attention_mask).last_hidden_state)
        ),
    )
    refuses(tiny_llama, tiny_tokenizer, "it keeps its cache to itself, in remains of a LlamaModel")
    assert decoder.remains is None
    decoder.remains = used = DynamicCache()
    refuses(tiny_llama, tiny_tokenizer, "it keeps its cache to itself")
    assert decoder.remains is used and used.get_seq_length() == 0


def _without_cache(model, **shown):
    """A model that has no argument for a cache; `shown` become part of its output."""
    own = model.forward

    def forward(self, input_ids=None, attention_mask=None, **_):
        return CausalLMOutputWithPast(
            logits=own(input_ids, attention_mask=attention_mask, use_cache=False).logits, **shown
        )

    model.forward = types.MethodType(forward, model)
    return model


def test_what_was_said_kept_in_the_model_in_no_cache(tiny_llama, tiny_tokenizer):
    heard, own = [], _without_cache(tiny_llama).forward

    def forward(self, input_ids=None, attention_mask=None, **_):
        heard.append(input_ids)
        return own(input_ids=torch.cat(heard, dim=1))

    tiny_llama.forward = types.MethodType(forward, tiny_llama)
    refuses(tiny_llama, tiny_tokenizer, "one token gave two outputs in two passes: it keeps what it saw to itself")


def test_a_model_without_caches_takes_every_pass_for_a_prompt(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(_without_cache(tiny_llama), tiny_tokenizer, CONFIG)
    assert memoir.last_routes == []


def test_a_model_that_generates_must_give_its_cache(tiny_llama, tiny_tokenizer):
    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **_):
        return CausalLMOutputWithPast(logits=own(input_ids, attention_mask=attention_mask, use_cache=False).logits)

    own = tiny_llama.forward
    tiny_llama.forward = types.MethodType(forward, tiny_llama)
    refuses(tiny_llama, tiny_tokenizer, "no cache was found in its output, with use_cache=True")


def test_keys_and_values_in_tuples(tiny_llama, tiny_tokenizer):
    pair = (torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8))
    _without_cache(tiny_llama, **{CACHE: (pair, pair, pair)})
    refuses(tiny_llama, tiny_tokenizer, "keys and values as tuples of tensors, not in a cache object")


def test_a_cache_that_no_argument_takes_back(tiny_llama, tiny_tokenizer):
    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        output = own(input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return Recalled(output.logits, output[CACHE])

    own = tiny_llama.forward
    tiny_llama.forward = types.MethodType(forward, tiny_llama)
    refuses(tiny_llama, tiny_tokenizer, "no argument was found that takes its cache back")


def test_a_decoder_that_never_sees_the_cache(tiny_llama, tiny_tokenizer):
    """The cache goes to the layers past the decoder, so that a decode step looks like a prompt."""
    decoder, now = tiny_llama.model, []

    def outer(own, *args, **kwargs):
        now[:] = [kwargs.pop(CACHE, None) or DynamicCache()]
        output = own(*args, **kwargs)
        output[CACHE] = now[0]
        return output

    instead(decoder, lambda own, *args, **kwargs: own(*args, **{**kwargs, CACHE: now[0]}))
    instead(tiny_llama, outer)
    refuses(tiny_llama, tiny_tokenizer, "the route was not found again on the cache of a decode step")


def test_an_attention_mask_that_the_decoder_never_sees(tiny_llama, tiny_tokenizer):
    decoder, now = tiny_llama.model, []

    def outer(own, *args, attention_mask=None, **kwargs):
        now[:] = [attention_mask]
        return own(*args, **kwargs)

    instead(decoder, lambda own, *args, **kwargs: own(*args, **{**kwargs, "attention_mask": now[0]}))
    instead(tiny_llama, outer)
    refuses(
        tiny_llama,
        tiny_tokenizer,
        r"after a prefill \[5, 3\] tokens were seen that are no padding, \[\[5.0\], \[5.0\]\]",
    )


@pytest.mark.parametrize("steps", ["prefill", "decode"])
def test_rows_in_another_order(tiny_llama, tiny_tokenizer, steps):
    def forward(own, *args, input_ids=None, attention_mask=None, **kwargs):
        if (input_ids.shape[1] == 1) == (steps == "decode") and len(input_ids) == 2:
            input_ids, attention_mask = input_ids.flip(0), attention_mask.flip(0)
            output = own(*args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            output.last_hidden_state = output.last_hidden_state.flip(0)
            return output
        return own(*args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    instead(tiny_llama.model, forward)
    refuses(tiny_llama, tiny_tokenizer, f"a row that follows no edit changed in a {steps}")


def test_a_layer_that_runs_twice_in_a_pass(tiny_llama, tiny_tokenizer):
    tiny_llama.model.layers[2].mlp = tiny_llama.model.layers[1].mlp
    refuses(tiny_llama, tiny_tokenizer, "the edited layer must run once in a forward pass, it ran 2 times")


def test_a_layer_that_is_given_all_tokens_in_one_row(tiny_llama, tiny_tokenizer):
    instead(tiny_llama.model.layers[1].mlp, lambda own, x: own(x.flatten(0, 1)).view_as(x))
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert follows(memoir, tiny_tokenizer)


def test_a_layer_that_is_given_some_of_the_tokens(tiny_llama, tiny_tokenizer):
    def sent(own, x):
        tokens = x.flatten(0, 1)
        return torch.cat([own(tokens[:7]), torch.zeros_like(tokens[7:])]).view_as(x)

    instead(tiny_llama.model.layers[1].mlp, sent)
    before = everything(tiny_llama)
    with pytest.raises(
        UnsupportedModelError, match="given 7 of the 2 x 5 tokens of a batch: name a layer that sees all"
    ):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert everything(tiny_llama) == before


def test_a_layer_that_is_given_rows_of_its_own(tiny_llama, tiny_tokenizer):
    instead(tiny_llama.model.layers[1].mlp, lambda own, x: own(x.view(-1, 1, x.shape[-1])).view_as(x))
    refuses(
        tiny_llama, tiny_tokenizer, r"the edited layer's input must be \[B, S, D\] = \[2, 5, D\], got \[10, 1, 48\]"
    )


def test_a_layer_whose_output_is_not_used(tiny_llama, tiny_tokenizer):
    instead(tiny_llama.model.layers[1].mlp, lambda own, x: own(x) * 0)
    refuses(tiny_llama, tiny_tokenizer, "a change of the edited layer's output did not reach the model's output")


def test_further_layers_are_proved_too(tiny_llama, tiny_tokenizer):
    config = CONFIG.replace(further=1)
    before = everything(tiny_llama)
    for forward, match in (
        (lambda own, x: own(x) * 0, "a change of the edited layer's output did not reach the model's output"),
        (lambda own, x: own(x) + own(x), r"must run once each and in their order, they ran \[0, 1, 1\]"),
        (lambda own, x: x, r"must run once each and in their order, they ran \[0\]"),
    ):
        mlp = instead(tiny_llama.model.layers[2].mlp, forward)
        with pytest.raises(UnsupportedModelError, match=match):
            Memoir.attach(tiny_llama, tiny_tokenizer, config)
        del mlp.forward
        assert everything(tiny_llama) == before
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    assert follows(memoir, tiny_tokenizer)


def _mixing(model, share):
    """A model in which each row's output has a share of all rows' mean."""
    instead(model.lm_head, lambda own, x: own(x + share * x.mean(dim=0, keepdim=True)))
    return model


def test_rows_that_change_each_other_in_the_last_bits_alone(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(_mixing(tiny_llama, 1e-6), tiny_tokenizer, CONFIG)
    assert isinstance(memoir.model.get_submodule(LAYER), MemoirLinear)


def test_rows_that_change_each_other(tiny_llama, tiny_tokenizer):
    refuses(_mixing(tiny_llama, 1.0), tiny_tokenizer, "the output of a row that follows no edit changed in a prefill")


def test_a_forward_pass_that_fails(tiny_llama, tiny_tokenizer):
    def fails(own, *args, **kwargs):
        raise KeyError("decoder_input_ids")

    instead(tiny_llama.model, fails)
    error = refuses(
        tiny_llama, tiny_tokenizer, r"its forward pass on two short rows failed \(KeyError: 'decoder_input_ids'\)"
    )
    assert isinstance(error.__cause__, KeyError)

    def too_large(own, *args, **kwargs):
        raise torch.OutOfMemoryError("none left")

    instead(tiny_llama.model, too_large)
    with pytest.raises(torch.OutOfMemoryError):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)


def test_an_output_without_numbers(tiny_llama, tiny_tokenizer):
    instead(tiny_llama, lambda own, *args, **kwargs: {"ids": torch.zeros(2, 5, dtype=torch.int64)})
    refuses(tiny_llama, tiny_tokenizer, r"its output, a dict, holds no tensor \[B, S, ...\] of numbers")


@pytest.mark.parametrize("place", ["__init__", "_wrap"])
def test_a_router_that_cannot_be_made(tiny_llama, tiny_tokenizer, monkeypatch, place):
    before = everything(tiny_llama)

    def broken(*_):
        raise RuntimeError("no router")

    monkeypatch.setattr(routing.Router, place, broken)
    with pytest.raises(RuntimeError, match="no router"):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert everything(tiny_llama) == before


def test_a_loaded_memory_is_proved_too(tiny_llama, tiny_tokenizer, tmp_path):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    memoir.save_pretrained(tmp_path)
    assert "check" not in (tmp_path / "memory_config.json").read_text().split('"tau"')[0]
    memoir.detach()
    instead(tiny_llama.model.layers[1].mlp, lambda own, x: own(x) * 0)
    with pytest.raises(UnsupportedModelError, match="did not reach the model's output"):
        Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path)
    loaded = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path, check=False)
    assert loaded.config == memoir.config and not loaded.config.check
