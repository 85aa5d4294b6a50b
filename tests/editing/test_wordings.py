"""What an edit is learned from besides its own prompt: prefixes that the model writes, and scrambled copies."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.core.wordings import rewordings
from memoir_fast.editing.wordings import with_prefix, write_prefixes
from memoir_fast.hf.chat import as_chat
from memoir_fast.hf.tokens import tokenize

PROMPT = "Which river flows through the old town of Maribor?"


def test_words_are_the_prompts_own_and_its_end_stays():
    copies = rewordings(PROMPT, 50)
    assert 25 < len(copies) <= 50 and len(set(copies)) == len(copies)
    words = PROMPT.rstrip("?").split()
    for copy in copies:
        assert copy.endswith("?") and not copy.endswith("??")
        kept = copy.rstrip("?").split()
        assert len(kept) >= 2 and len(set(kept)) == len(kept) and set(kept) <= set(words)
        around = sorted(kept, key=words.index)
        start = kept.index(around[0])
        assert start > 0 and kept[start:] + kept[:start] == around  # turned around, never left as it was


def test_about_a_fifth_of_the_words_is_left_out():
    text = " ".join(f"w{index}" for index in range(100))
    kept = [len(copy.split()) for copy in rewordings(text, 200)]
    assert 78 < sum(kept) / len(kept) < 82


def test_the_same_prompt_gives_the_same_copies():
    assert rewordings(PROMPT, 5) == rewordings(PROMPT, 5)
    assert rewordings(PROMPT, 5)[:2] == rewordings(PROMPT, 2)
    assert rewordings(PROMPT, 5) != rewordings(PROMPT.replace("old", "new"), 5)


@pytest.mark.parametrize("prompt", ["Maribor", "  Maribor? ", "東", "..."])
def test_a_single_word_has_none(prompt):
    assert rewordings(prompt, 3) == []


def test_two_words_change_places():
    assert rewordings("hello there.", 3) == ["there hello."]


def test_an_edit_is_learned_from_them(tiny_llama, tiny_tokenizer, monkeypatch):
    seen = []
    from memoir_fast.editing import fast

    learn = fast.learn
    monkeypatch.setattr(
        fast, "learn", lambda context, wanted, *rest: seen.extend(wanted) or learn(context, wanted, *rest)
    )
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=2, steps=1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=recipe))
    memoir.edit([Edit(PROMPT, "Drava")], progress=False)
    texts = [tiny_tokenizer.decode(row.ids[: row.prompt]) for row in seen[0][1]]
    assert texts == [tiny_tokenizer.decode(tiny_tokenizer(text).input_ids) for text in (PROMPT, *rewordings(PROMPT, 2))]
    memoir.detach()


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="rewordings >= 0"):
        dataclasses.replace(RECIPES["fast"], rewordings=-1)


@pytest.mark.parametrize("room", [None, 10_000, 60, 1])
def test_further_rows_are_left_out_where_they_would_be_too_long_together(tiny_llama, tiny_tokenizer, room):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer)
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=1, rewordings=3, tokens=None)
    every = memoir.rows(Edit(PROMPT, "Drava"), recipe)
    chosen = memoir.rows(Edit(PROMPT, "Drava"), dataclasses.replace(recipe, tokens=room))
    assert len(every) == 5 and chosen[0] == every[0] and all(row in every for row in chosen)
    if room is None or room == 10_000:
        assert chosen == every
    else:
        assert len(chosen) < 5 and (len(chosen) == 1 or sum(len(row.ids) for row in chosen) <= room)
    memoir.detach()


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }} {% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM, None])
@pytest.mark.parametrize("taught_in_a_chat", [False, True])
def test_the_first_prefix_is_a_chats_system_prompt_where_it_takes_one(
    tiny_llama, tiny_tokenizer, template, taught_in_a_chat
):
    tiny_tokenizer.chat_template = template
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(routing="early"))
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=2, rewordings=0, questions=0, tokens=None)
    chat = as_chat(tiny_tokenizer, PROMPT)
    prompt = chat if taught_in_a_chat and chat else PROMPT
    rows = memoir.rows(Edit(prompt, "Drava"), recipe)
    first, second = memoir.prefixes[:2]
    led = as_chat(tiny_tokenizer, PROMPT, first) if template == CHAT else None
    if prompt == PROMPT:
        wanted = [PROMPT, chat, led, with_prefix(first, PROMPT), with_prefix(second, PROMPT)]
    else:
        wanted = [chat, PROMPT, led or with_prefix(first, chat), with_prefix(second, chat)]
    wanted = [text for text in wanted if text is not None]
    assert [row.ids[: row.prompt] for row in rows] == [tokenize(tiny_tokenizer, text) for text in wanted]
    plain = memoir.rows(Edit(prompt, "Drava"), dataclasses.replace(recipe, chat=False))
    assert [row.ids[: row.prompt] for row in plain[1:]] == [
        tokenize(tiny_tokenizer, with_prefix(text, prompt)) for text in (first, second)
    ]
    memoir.detach()


@pytest.mark.parametrize(
    ("prefix", "text"),
    [("", "Who?"), ("It rains", "It rains. Who?"), ("It rains.", "It rains. Who?"), ("Oh!", "Oh! Who?")],
)
def test_a_prefix_is_a_sentence_of_its_own(prefix, text):
    assert with_prefix(prefix, "Who?") == text


def test_the_same_model_writes_the_same_texts_and_draws_no_number(tiny_llama, tiny_tokenizer):
    before = torch.random.get_rng_state()
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 14, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert texts == write_prefixes(tiny_llama, tiny_tokenizer, 14, 3)
    assert texts[:5] == write_prefixes(tiny_llama, tiny_tokenizer, 5, 3)
    assert len(set(texts)) == 14 and write_prefixes(tiny_llama, tiny_tokenizer, 0, 3) == []
    for text in texts:
        assert text == " ".join(text.split()) and "</s>" not in text
    opening = "The weather today is"
    assert texts[0].startswith(opening) and len(texts[0]) >= len(opening)
    assert texts[12].startswith(opening)


def test_sampling_settings_of_the_model_change_nothing(tiny_llama, tiny_tokenizer):
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 2, 4)
    tiny_llama.generation_config.update(do_sample=True, temperature=5.0, num_beams=4, max_length=3)
    assert write_prefixes(tiny_llama, tiny_tokenizer, 2, 4) == texts
    assert tiny_llama.generation_config.do_sample


def test_a_tokenizer_without_a_padding_token(tiny_llama, tiny_tokenizer):
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 1, 4)
    tiny_tokenizer.pad_token = None
    assert write_prefixes(tiny_llama, tiny_tokenizer, 1, 4) == texts
