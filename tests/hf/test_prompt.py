"""The prompt of a `generate` call is found by what it is."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from memoir_fast.hf.prompt import prompt_positions

IDS = torch.zeros(2, 5, dtype=torch.int64)
MASK = torch.ones(2, 9, dtype=torch.int64)
EMBEDDED = torch.zeros(2, 7, 32)
PIXELS = torch.zeros(2, 3, 8)


@pytest.fixture
def positions(tiny_llama):
    return lambda *args, **kwargs: prompt_positions(tiny_llama, tiny_llama.generate, args, kwargs)


def test_ids_by_any_name(positions):
    assert positions(IDS) == positions(inputs=IDS) == positions(input_ids=IDS) == positions(what_is_said=IDS) == 5
    assert positions(attention_mask=MASK, what_is_said=IDS.int()) == 5
    assert positions(negative_prompt_ids=MASK, input_ids=IDS) == 5


def test_embeddings_win_over_ids(positions):
    assert positions(inputs_embeds=EMBEDDED) == positions(soft=EMBEDDED.bfloat16()) == 7
    assert positions(IDS, inputs_embeds=EMBEDDED) == 7
    assert positions(IDS, pixels=PIXELS) == 5  # floats of another width are no embeddings of this model


def test_ids_behind_what_a_cache_holds(positions, tiny_llama):
    """Transformers takes all ids or those alone that are new, and the mask of all in either case."""
    cache = DynamicCache(config=tiny_llama.config)
    assert positions(IDS, attention_mask=MASK, anything=cache) == positions(input_ids=MASK, anything=cache) == 9
    assert positions(IDS, attention_mask=MASK[:, None, None].bool(), anything=cache) == 5
    assert positions(inputs_embeds=EMBEDDED, attention_mask=MASK, anything=cache) == 7  # these are always all


def test_no_input_at_all(positions):
    assert positions() == positions(None, max_new_tokens=3) == 1


def test_tensors_of_no_known_kind(positions):
    assert positions(attention_mask=MASK) is positions(sound=torch.zeros(2, 80, 3000)) is None


def test_another_signature():
    def generate(said=None, length=3, **rest): ...

    model = SimpleNamespace(main_input_name="said")
    assert prompt_positions(model, generate, (IDS,), {}) == prompt_positions(model, generate, (), {"said": IDS}) == 5
    assert prompt_positions(model, generate, (), {"other": PIXELS}) == 3  # no width known: any floats [B, S, H]
