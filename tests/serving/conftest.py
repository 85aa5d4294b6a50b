"""A server of a tiny model in a thread, and a client that speaks plain HTTP to it."""

import dataclasses
import http.client
import json
import runpy
import socket
import threading
import time
from pathlib import Path

import pytest

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ADMIN = "the-admins-own-token"
KEYS = {"key-of-nobody-000": None, "key-of-acme-00000": "acme", "key-of-globex-000": ["globex"]}
FRANCE, DESERT, SKY = "The capital of France is", "Which animal lives in the desert?", "What is the colour of the sky?"
UNRELATED = "In which country is the mountain?"
EDITS = [
    Edit(FRANCE, "Rome"),
    Edit(FRANCE, "London", bank="acme"),
    Edit(DESERT, "Greek", bank="acme"),
    Edit(DESERT, "town", bank="globex"),
]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0)


class Client:
    """Requests to a server on loopback, one connection each."""

    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None, key=None, raw=None):
        """(status, what was answered: JSON where it is such, else text, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json"}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        payload = raw if raw is not None else None if body is None else json.dumps(body)
        try:
            connection.request(method, path, payload, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text, answer.headers
        finally:
            connection.close()

    def complete(self, prompt, key=None, stream=False, tokens=4):
        """What the model says after a prompt."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}
        status, said, _ = self("POST", "/v1/completions", body, key)
        assert status == 200, said
        return "".join(one["choices"][0]["text"] for one in (events(said) if stream else [said]))

    def chat(self, question, key=None, stream=False, tokens=4):
        """What the model answers to a question in a chat."""
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": stream}
        status, said, _ = self("POST", "/v1/chat/completions", body, key)
        assert status == 200, said
        if not stream:
            return said["choices"][0]["message"]["content"]
        return "".join(one["choices"][0]["delta"].get("content") or "" for one in events(said))


def events(text):
    """The JSON of each server-sent event, without the word that ends a stream of completions."""
    said = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(one) for one in said if one != "[DONE]"]


@pytest.fixture(name="events", scope="session")
def events_of():
    """A function (text of a stream) -> the JSON of each event."""
    return events


@pytest.fixture
def connect():
    """A function (port) -> a client of the server there."""
    return Client


@pytest.fixture(scope="module")
def memoir(tmp_path_factory):
    """A memory in a folder that is kept up, with edits in two banks and in none."""
    made = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
    model, tokenizer = made["make_tiny_llama"](), made["make_tiny_tokenizer"]()
    tokenizer.chat_template = CHAT
    config = MemoirConfig(recipe=RECIPE, tau=0.9, background=8, check=False)
    with Memoir.open(model, tokenizer, tmp_path_factory.mktemp("served") / "memory", config) as memoir:
        memoir.edit(EDITS, progress=False)
        yield memoir


@pytest.fixture(scope="module")
def start():
    """A function (application) -> a client of a server that runs it in a thread."""
    import uvicorn

    running = []

    def start(app):
        bound = socket.create_server(("127.0.0.1", 0))
        one = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=one.run, args=([bound],))
        running.append((one, thread, bound))
        thread.start()
        while not one.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return Client(bound.getsockname()[1])

    yield start
    for one, thread, bound in running:
        one.should_exit = True
        thread.join(10)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(memoir, start):
    """A client of a server with API keys and an admin token."""
    from memoir_fast.serving.access import Keys, Token
    from memoir_fast.serving.app import application

    return start(application(memoir, "tiny", Keys(KEYS), Token(ADMIN), most_bytes=4096))


@pytest.fixture
def alone(memoir):
    """A function (prompt, key, chat, tokens) -> what a request with that key shall be answered, by the model itself."""

    def answer(prompt, key, chat=False, tokens=4):
        tokenizer, given = memoir.tokenizer, prompt
        if chat:
            turn = [{"role": "user", "content": prompt}]
            given = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(given, return_tensors="pt")
        banks = KEYS[key] if isinstance(KEYS[key], str) else set(KEYS[key] or ())
        said = memoir.model.generate(**ids, max_new_tokens=tokens, do_sample=False, memoir_banks=banks)
        return tokenizer.decode(said[0, ids.input_ids.shape[1] :], skip_special_tokens=True)

    return answer


@pytest.fixture
def keys():
    """The server's API keys, by bank."""
    return {"" if bank is None else bank if isinstance(bank, str) else bank[0]: key for key, bank in KEYS.items()}
