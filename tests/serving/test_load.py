"""Many requests at once: each is answered as it is alone, and none sees another's banks."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

PROMPTS = ("The capital of France is", "Which animal lives in the desert?", "Who wrote the play?", "The river runs to")
ADMIN = "the-admins-own-token"
REQUESTS, AT_ONCE, TOKENS = 200, 16, 2


def test_two_hundred_requests_sixteen_at_once(client, keys, alone):
    draw = random.Random(5)
    wanted = {
        (prompt, key, chat): alone(prompt, key, chat, TOKENS)
        for prompt in PROMPTS
        for key in keys.values()
        for chat in (False, True)
    }
    of_one_prompt = [{wanted[prompt, key, False] for key in keys.values()} for prompt in PROMPTS]
    assert [len(said) for said in of_one_prompt] == [2, 3, 1, 1], "a mistaken bank would not show"

    def ask(request):
        prompt, key, chat, stream = request
        said = (client.chat if chat else client.complete)(prompt, key, stream, TOKENS)
        expected = wanted[prompt, key, chat]
        return said == (expected.rstrip("\ufffd") if stream else expected) or (request, said, expected)

    def teach(number):
        edit = {"prompt": PROMPTS[number], "target": "Greek", "bank": "another"}
        status, said, _ = client("POST", "/memoir/edits", edit, ADMIN)
        assert status == 200, said
        return said["edit_id"]

    drawn = [(*draw.choice([*wanted]), draw.random() < 0.3) for _ in range(REQUESTS)]
    with ThreadPoolExecutor(AT_ONCE) as many, ThreadPoolExecutor(1) as teacher:
        taught = teacher.map(teach, (0, 3))  # meanwhile
        wrong = [one for one in many.map(ask, drawn) if one is not True]
        ids = list(taught)
    assert not wrong
    for edit_id in ids:
        assert client("DELETE", f"/memoir/edits/{edit_id}", key=ADMIN)[0] == 200
