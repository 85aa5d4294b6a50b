"""What a chat template puts around what is said, for the templates of well-known families."""

import pytest
import torch

from memoir_fast.hf.chat import as_chat, chat_text, special_ids, turn_marks, user_text
from memoir_fast.hf.tokens import tokenize
from memoir_fast.modules.routing_code import RoutingCode

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
    ),
    "llama3": (
        "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}",
        ["<|head|>", "<|/head|>", "<|eot|>"],
    ),
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}"
        "{% endfor %}",
        ["[INST]", "[/INST]"],
    ),
    "vicuna": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} {% elif m['role'] == 'user' %}"
        "USER: {{ m['content'] }} {% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        [],
    ),
}


@pytest.fixture(params=TEMPLATES)
def tokenizer(request, tiny_tokenizer):
    template, special = TEMPLATES[request.param]
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": special})
    tiny_tokenizer.chat_template = template
    return tiny_tokenizer


def said(tokenizer, talk):
    """What a routing code takes for the user's, of a conversation in the template."""
    ids = tokenizer(chat_text(tokenizer, talk), add_special_tokens=False).input_ids
    size = len(tokenizer)
    weights = torch.ones(size)
    weights[list(special_ids(tokenizer))] = 0
    none = torch.zeros(1)
    code = RoutingCode(weights, torch.zeros(size).byte(), none, none[:, None], 1, 0, 1.0, *turn_marks(tokenizer))
    tensor = torch.tensor([ids])
    real = tensor >= 0
    whole = code._whole(None, tensor, real)
    weight = code._weight(code._known(whole), real, code._roles(None, whole, len(ids)))[0]
    return tokenizer.decode([one for one, own in zip(ids, weight.tolist(), strict=True) if own]).strip()


TALKS = [
    ([("user", "Who wrote Emma?")], "Who wrote Emma?"),
    ([("user", "Hello."), ("assistant", "The USER knows."), ("user", "Who wrote Emma?")], "Who wrote Emma?"),
    ([("system", "You are a pirate."), ("user", "Who wrote Emma?")], "Who wrote Emma?"),
]


@pytest.mark.parametrize(("talk", "last"), TALKS)
def test_only_the_user_is_heard(tokenizer, talk, last):
    try:
        text = chat_text(tokenizer, talk)
    except Exception as error:
        assert "no system" in str(error)  # the template that knows no system prompt
        return
    heard = said(tokenizer, talk)
    users = [content for role, content in talk if role == "user"]
    assert heard.replace(" ", "") == "".join(users).replace(" ", ""), heard
    opened, closed = turn_marks(tokenizer)
    assert opened and closed and user_text(tokenizer, text, opened, closed) == last


def test_a_plain_prompt_as_a_chat_and_back(tokenizer):
    chat = as_chat(tokenizer, "Who wrote Emma?")
    assert "Who wrote Emma?" in chat and chat != "Who wrote Emma?"
    assert user_text(tokenizer, chat, *turn_marks(tokenizer)) == "Who wrote Emma?"
    assert user_text(tokenizer, "Who wrote Emma?", *turn_marks(tokenizer)) == ""
    assert tokenize(tokenizer, chat) == tokenizer(chat).input_ids


def test_a_chat_behind_a_system_prompt(tokenizer):
    chat = as_chat(tokenizer, " Who wrote Emma? ", "It rains.")
    if "no system" in tokenizer.chat_template:
        assert chat is None
    else:
        assert chat == chat_text(tokenizer, [("system", "It rains."), ("user", " Who wrote Emma? ")])
        assert chat.index("It rains.") < chat.index("Who wrote Emma?")


def test_a_template_whose_error_is_not_about_a_system_prompt(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(Exception, match="no users"):
        as_chat(tiny_tokenizer, "Who?")


def test_without_a_template_there_are_no_chats(tiny_tokenizer):
    assert turn_marks(tiny_tokenizer) == ([], []) and as_chat(tiny_tokenizer, "Who?") is None
    assert special_ids(tiny_tokenizer) == {0, 1}


def test_a_template_that_drops_what_is_said(tiny_tokenizer):
    tiny_tokenizer.chat_template = "nothing"
    assert as_chat(tiny_tokenizer, "Who wrote Emma?") is None and turn_marks(tiny_tokenizer) == ([], [])


def test_a_template_that_drops_the_system_prompt(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ messages[-1].content }}"
    assert as_chat(tiny_tokenizer, "Who?") == "Who?" and as_chat(tiny_tokenizer, "Who?", "It rains.") is None
