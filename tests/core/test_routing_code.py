"""How a model's routing code is made: weights, marks, whitening, and the block that is chosen."""

import pytest
import torch

from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.core.routing_code import (
    WIDTH,
    K,
    background_forms,
    bare_code,
    choose_block,
    make,
    prompt_codes,
    prompt_features,
    rotation,
    text_marks,
    token_weights,
    whitened,
)
from memoir_fast.mask_format import unpack
from memoir_fast.modules.routing_code import ASKS, BEGINS_WORD, ENDS, ENDS_SOFTLY, INITIAL

PROMPTS = irrelevant_prompts()[:40]


def down(model, block=2):
    """A layer that may be edited."""
    return model.model.layers[block].mlp.down_proj


def test_weights_are_how_unexpected_tokens_are(tiny_llama, tiny_tokenizer):
    weights = token_weights(tiny_llama, tiny_tokenizer, PROMPTS[:5])
    total, count = 0.0, 0
    for prompt in PROMPTS[:5]:
        ids = tiny_tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            total = total + tiny_llama(ids).logits[0].double().softmax(dim=-1).sum(dim=0)
        count += ids.shape[1]
    size = len(weights)
    surprise = -(total / count).clamp(min=0.1 / size).log()
    named = [one for one in range(size) if tiny_tokenizer.decode([one]).strip() and one > 1]
    assert size == 384 and len(named) < size - 2
    torch.testing.assert_close(weights[named], (surprise[named] ** 2).float(), rtol=1e-4, atol=1e-4)
    blank = [one for one in range(size) if one not in named]
    assert not weights[blank].any() and weights[named].min() > 0


def test_marks_of_tokens(tiny_tokenizer):
    marks = text_marks(tiny_tokenizer, 400)
    of = {text: int(marks[tiny_tokenizer(text).input_ids[-1]]) for text in (".", "?", "\n", "A", "e", "!", ",")}
    assert of["."] == ENDS_SOFTLY and of["?"] == ENDS_SOFTLY | ASKS and of["!"] == ENDS_SOFTLY
    assert of["\n"] & ENDS and of["A"] == INITIAL and of["e"] == of[","] == 0
    assert int(marks[tiny_tokenizer(" the").input_ids[0]]) == BEGINS_WORD
    assert not marks[384:].any()  # more logits than tokens


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    features = torch.randn(30, 50) @ torch.randn(50, 50)
    centred = (features - features.mean(dim=0)).double()
    covariance = centred.T @ centred / 30
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp(min=0) + 0.1 * values.mean()) ** -0.5
    expected = vectors @ torch.diag(scale) @ vectors.T
    x = torch.randn(50, 7)
    torch.testing.assert_close(whitened(features, x).double(), expected @ x.double(), rtol=1e-4, atol=1e-4)


def test_a_code_of_a_model(tiny_llama, tiny_tokenizer):
    code = make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, seed=3)
    assert code.block in (1, 2) and (code.width, code.k) == (WIDTH, K) and code.opened == []
    masks = prompt_codes(tiny_llama, down(tiny_llama), tiny_tokenizer, code, PROMPTS[:6])
    assert masks.shape == (6, 3, WIDTH // 32)
    assert (unpack(masks.flatten(0, 1), WIDTH).sum(dim=1) == K).all()
    again = make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, code.block, seed=3)
    assert torch.equal(prompt_codes(tiny_llama, down(tiny_llama), tiny_tokenizer, again, PROMPTS[:6]), masks)
    other = make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, code.block, seed=4)
    assert not torch.equal(prompt_codes(tiny_llama, down(tiny_llama), tiny_tokenizer, other, PROMPTS[:6]), masks)
    features = prompt_features(tiny_llama, down(tiny_llama), tiny_tokenizer, code, PROMPTS)
    assert torch.equal(code.packed(features[:6]), masks[:, 0])
    assert torch.equal(rotation(5, 8, 1), rotation(5, 8, 1))


def test_too_little_to_go_by(tiny_llama, tiny_tokenizer):
    with pytest.raises(ValueError, match="at least 2 background prompts, got 1"):
        make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS[:1], 1)
    bare = bare_code(tiny_tokenizer, token_weights(tiny_llama, tiny_tokenizer, PROMPTS), 0)
    with torch.no_grad():
        tiny_llama.get_input_embeddings().weight[5:] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, 1)
    with pytest.raises(ValueError, match="must be finite"):  # also where it was finite a moment before
        choose_block(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, bare)


def test_background_in_both_forms(tiny_tokenizer):
    assert background_forms(tiny_tokenizer, PROMPTS) == [PROMPTS]
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    plain, chat, turn = background_forms(tiny_tokenizer, PROMPTS[:3])
    assert plain == PROMPTS[:3] and chat[0] == f"user: {PROMPTS[0]}\n"
    assert turn[2].startswith(f"user: {PROMPTS[0]}\n") and turn[2].endswith(f"user: {PROMPTS[2]}\n")


def test_the_block_is_one_that_may_be_chosen(tiny_llama, tiny_tokenizer):
    bare = bare_code(tiny_tokenizer, token_weights(tiny_llama, tiny_tokenizer, PROMPTS[:8]), 0)
    best, figures = choose_block(tiny_llama, down(tiny_llama, 1), tiny_tokenizer, PROMPTS, bare)
    assert best == 1 and list(figures) == [1]
    best, figures = choose_block(tiny_llama, down(tiny_llama, 2), tiny_tokenizer, PROMPTS, bare)
    assert list(figures) == [1, 2] and figures[best] == max(figures.values())
    assert choose_block(tiny_llama, down(tiny_llama, 0), tiny_tokenizer, PROMPTS, bare)[0] == 0


def test_blocks_are_those_of_the_decoder_whatever_other_lists_a_model_has(tiny_llama, tiny_tokenizer):
    """As experts are, of which a block may have more than there are blocks."""
    expected = make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, 1)
    tiny_llama.model.layers[0].experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(50))
    found = make(tiny_llama, down(tiny_llama), tiny_tokenizer, PROMPTS, 1)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.projection, expected.projection)
