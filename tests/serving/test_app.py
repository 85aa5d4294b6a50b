"""The server of a memory: what it answers, to whom, and which edits each request sees."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

from memoir_fast import MemoirError  # noqa: E402
from memoir_fast.hf import server  # noqa: E402
from memoir_fast.serving.app import application  # noqa: E402

FRANCE, DESERT, UNRELATED = "The capital of France is", "Which animal lives in the desert?", "Who wrote the play?"
ADMIN = "the-admins-own-token"
WITHOUT = {"prompt": FRANCE, "max_tokens": 2, "temperature": 0}


def whole(text, stream):
    """What is streamed of a text: transformers' streamer keeps half a character back."""
    return text.rstrip("\ufffd") if stream else text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("bank", ["", "acme", "globex"])
def test_a_key_sees_its_banks_and_no_others(client, alone, keys, bank, stream):
    said = {}
    for prompt in (FRANCE, DESERT, UNRELATED):
        said[prompt] = client.complete(prompt, keys[bank], stream)
        assert said[prompt] == whole(alone(prompt, keys[bank]), stream)
        assert client.chat(prompt, keys[bank], stream) == whole(alone(prompt, keys[bank], chat=True), stream)
    begins = {"": (" Rome", ""), "acme": (" London", "Greek"), "globex": (" Rome", "town")}[bank]
    assert said[FRANCE].startswith(begins[0]) and said[DESERT].lstrip().startswith(begins[1])
    assert bank or not said[DESERT].lstrip().startswith(("Greek", "town"))


def test_the_third_api_sees_banks_too(client, alone, keys):
    body = {"input": FRANCE, "max_output_tokens": 4, "temperature": 0, "stream": False}
    status, said, _ = client("POST", "/v1/responses", body, keys["acme"])
    assert status == 200, said
    assert said["output"][0]["content"][0]["text"] == alone(FRANCE, keys["acme"], chat=True)


def test_without_a_known_key_nothing_but_health_and_metrics_is_answered(client, keys):
    for key in (None, "", "key-of-acme-00001", ADMIN, keys["acme"] + "x"):
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/nowhere"), ("GET", "/docs")):
            status, said, headers = client(method, path, WITHOUT if method == "POST" else None, key)
            assert status == 401 and "API key" in said["error"]["message"], (key, path)
            assert headers["WWW-Authenticate"] == "Bearer"
    assert client("GET", "/health")[0] == client("GET", "/metrics")[0] == 200
    status, said, _ = client("GET", "/v1/models", key=keys["acme"])
    assert status == 200 and [one["id"] for one in said["data"]] == ["tiny"]


def test_a_body_names_no_banks(client, keys, alone):
    ours = alone(FRANCE, keys["globex"])
    for further in ({"memoir_banks": "acme"}, {"generation_config": json.dumps({"memoir_banks": "acme"})}):
        body = {"prompt": FRANCE, "max_tokens": 4, "temperature": 0, **further}
        status, said, _ = client("POST", "/v1/completions", body, keys["globex"])
        assert 400 <= status < 500 or said["choices"][0]["text"] == ours


def test_the_admins_routes_need_the_admins_token(client, keys):
    for key in (None, keys["acme"], ADMIN[:-1], ADMIN + "x"):
        for path in ("/memoir/status", "/memoir/edits", "/memoir", "/memoir/nothing"):
            status, said, _ = client("GET", path, key=key)
            assert status == 401 and "admin token" in said["error"]["message"]
    assert client("GET", "/memoir/status", key=ADMIN)[0] == 200
    assert client("GET", "/memoir/nothing", key=ADMIN)[0] == 404


def test_without_a_token_there_are_no_such_routes_and_without_keys_anybody_may_ask(memoir, start, alone, keys):
    client = start(application(memoir, "tiny"))
    for method, path in (("GET", "/memoir/status"), ("POST", "/memoir/edits"), ("DELETE", "/memoir/edits/0")):
        assert client(method, path, {} if method == "POST" else None, ADMIN)[0] == 404
    assert len(memoir.edits) == 4
    assert client.complete(FRANCE) == client.complete(FRANCE, "any key") == alone(FRANCE, keys[""])


ASKED = {
    "/v1/completions": {"prompt": FRANCE},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": FRANCE}]},
    "/v1/responses": {"input": FRANCE, "stream": False},
}


@pytest.mark.parametrize(
    ("path", "further", "named"),
    [
        ("/v1/completions", {"n": 2}, "n is not served here, but as 1, got 2"),
        ("/v1/completions", {"echo": True}, "echo"),
        ("/v1/completions", {"logprobs": 0}, "logprobs"),
        ("/v1/completions", {"logit_bias": {"5": 9}}, "logit_bias"),
        ("/v1/chat/completions", {"n": 2, "stream": True}, "n is"),
        ("/v1/chat/completions", {"n": True}, "n is"),
        ("/v1/chat/completions", {"logprobs": True}, "logprobs"),
        ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {"tool_choice": "none", "tools": [{"type": "function"}]}, "tool_choice"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, 'as {"type": "text"}, got'),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id is not served here, got"),
        ("/v1/responses", {"background": True}, "background"),
        ("/v1/responses", {"input": [{"type": "input_image", "image_url": "a"}]}, 'got {"type": "input_image"'),
        ("/v1/responses", {"text": {"verbosity": "low", "format": {"type": "json_object"}}}, "text is not served"),
        ("/v1/completions", {"suffix": " in France"}, "suffix"),
        (
            "/v1/chat/completions",
            {"parallel_tool_calls": False, "tools": [{"type": "function", "function": {"name": "f"}}]},
            "parallel_tool_calls is not served here, but as true, got false",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
            'content[1] must be {"type": "text", "text": "..."}, got {"type": "image_url"}',
        ),
    ],
)
def test_what_an_answer_would_lack_is_refused(client, keys, path, further, named):
    status, said, _ = client("POST", path, {**ASKED[path], **further}, keys["acme"])
    assert status == 400 and named in said["error"]["message"], said


@pytest.mark.parametrize("path", ASKED)
def test_fields_that_ask_for_what_is_done_anyway_are_served(client, keys, path):
    further = {"user": "jo", "temperature": 0, "max_output_tokens" if path == "/v1/responses" else "max_tokens": 1}
    further |= {"parallel_tool_calls": False, "text": {"verbosity": "low", "format": {"type": "text"}}}
    if path != "/v1/responses":
        further |= {"n": 1, "presence_penalty": 0.0, "logprobs": None}
    if path == "/v1/chat/completions":
        further |= {"tool_choice": "none", "tools": None, "response_format": {"type": "text"}}
    status, said, _ = client("POST", path, {**ASKED[path], **further}, keys["acme"])
    assert status == 200, said


FAILURE = 'of "two" lines,\nand a \\ in it, \x00\x1b\u2028'


@pytest.mark.parametrize("path", ASKED)
def test_an_error_within_a_stream_is_told_as_it_is(client, keys, path, memoir, monkeypatch, events):
    def fail(input_ids, stopping_criteria, **_):
        stopping_criteria(input_ids, None)  # as behind the first token
        time.sleep(0.2)  # the answer has begun by then, and can have no other status
        raise ValueError(FAILURE)

    monkeypatch.setattr(memoir.model, "generate", fail)
    status, said, _ = client("POST", path, {**ASKED[path], "stream": True}, keys["acme"])
    told = f"the request was not understood: ValueError: {FAILURE}"
    if path == "/v1/responses":
        (error,) = [one for one in events(said) if one["type"] == "error"]
        assert status == 200 and error["message"] == told
        assert events(said)[-1]["response"]["error"]["message"] == told
    else:
        assert status == 200 and said.endswith("data: [DONE]\n\n")
        assert events(said)[-1]["error"] == {
            "message": told, "type": "invalid_request_error", "param": None, "code": None,
        }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ASKED)
def test_what_ends_an_answer_before_it_has_begun_has_a_status(client, keys, path, stream, memoir, monkeypatch):
    def fail(**_):
        raise RuntimeError("a secret of the server's")

    monkeypatch.setattr(memoir.model, "generate", fail)
    status, said, _ = client("POST", path, {**ASKED[path], "stream": stream}, keys["acme"])
    assert status == 500 and said["error"]["message"] == "the request failed: RuntimeError"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_seed_is_a_requests_own(client, keys, stream):
    """However many are asked at once, and what comes without a seed is not the seed's."""

    def say(seed):
        body = {"prompt": UNRELATED, "max_tokens": 8, "temperature": 1, "stream": stream, "seed": seed}
        status, said, _ = client("POST", "/v1/completions", body, keys["acme"])
        assert status == 200, said
        return "".join(one["choices"][0]["text"] for one in (parsed(said) if stream else [said]))

    def parsed(said):
        return [json.loads(one[6:]) for one in said.split("\n\n") if one.startswith("data: {")]

    alone = {seed: say(seed) for seed in range(6)}
    assert len(set(alone.values())) == len(alone), "a mistaken seed would not show"
    with ThreadPoolExecutor(12) as many:
        seeds = [*alone, None] * 3
        assert all(
            said == alone[seed] for seed, said in zip(seeds, many.map(say, seeds), strict=True) if seed is not None
        )
    behind = []
    for _ in range(2):
        assert say(0) == alone[0]
        behind.append(say(None))
    assert behind[0] != behind[1]


def test_a_temperature_draws_though_the_models_own_settings_are_greedy(client, keys, memoir):
    assert not memoir.model.generation_config.do_sample
    body = {"prompt": UNRELATED, "max_tokens": 8}
    said = []
    for further in ({}, {"temperature": 0}, {"temperature": 1e-30}, {"temperature": 1}, {"top_p": 0.99}):
        status, answer, _ = client("POST", "/v1/completions", {**body, **further, "seed": 1}, keys["acme"])
        assert status == 200, answer
        said.append(answer["choices"][0]["text"])
    assert said[0] == said[1] == said[2] != said[3] and said[0] != said[4]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_nothing_is_generated_for_clients_that_are_gone(memoir, start, stream):
    client = start(application(memoir, "tiny"))
    body = {"prompt": UNRELATED, "max_tokens": 200, "temperature": 0, "stream": stream}
    body["generation_config"] = json.dumps({"eos_token_id": None})
    passes = []

    def seen(*_):
        passes.append(time.sleep(0.01))

    watched = memoir.model.register_forward_pre_hook(seen)
    try:
        leaving = []
        for _ in range(3):  # one is answered, two wait
            leaving.append(http.client.HTTPConnection("127.0.0.1", client.port))
            leaving[-1].request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        while len(passes) < 3:
            time.sleep(0.001)
        for one in leaving:
            one.close()
        client.complete(FRANCE, tokens=1)
    finally:
        watched.remove()
    assert len(passes) < 100


def test_a_client_that_goes_before_its_body_has_come_is_no_failure(client, keys, caplog):
    heads = f"Authorization: Bearer {keys['acme']}", f"Authorization: Bearer {ADMIN}"
    for path, head in zip(("/v1/completions", "/memoir/edits"), heads, strict=True):
        with socket.create_connection(("127.0.0.1", client.port)) as leaving:
            leaving.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{head}\r\nContent-Length: 99\r\n\r\n{{".encode())
            time.sleep(0.1)
    time.sleep(0.1)
    assert client.complete(FRANCE, keys["acme"]).startswith(" London")
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_long_bodies_are_refused(client, keys):
    long = json.dumps(WITHOUT | {"prompt": "a" * 5000})
    in_chunks = iter([long[:3000].encode(), long[3000:].encode()])
    for raw in (long, in_chunks):
        status, said, _ = client("POST", "/v1/completions", key=keys["acme"], raw=raw)
        assert status == 413 and "4,096 bytes" in said["error"]["message"]
    assert client("POST", "/v1/completions", key="nobody", raw=long)[0] == 401  # before it is read


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_prompt_has_to_leave_room_in_the_models_context(client, keys, memoir, stream):
    longest = memoir.model.config.max_position_embeddings
    prompts = [" ".join(["Rome"] * words) for words in range(1, 1 + longest)]
    tokens = {len(memoir.tokenizer(prompt).input_ids): prompt for prompt in prompts}
    full = min(length for length in tokens if length >= longest)
    fits = max(length for length in tokens if length < longest)
    for path, body in (
        ("/v1/completions", {"prompt": tokens[full]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": tokens[full]}]}),
        ("/v1/responses", {"input": tokens[full]}),
    ):
        status, said, _ = client("POST", path, {**body, "temperature": 0, "stream": stream}, keys["acme"])
        assert status == 400 and f"context, of {longest:,}" in said["error"]["message"], path
    body = {"prompt": tokens[fits], "max_tokens": 64, "temperature": 0}
    status, said, _ = client("POST", "/v1/completions", body, keys["acme"])
    assert status == 200 and said["usage"]["total_tokens"] <= longest


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_under_way_when_the_server_ends_is_told_so(memoir, start, stream, events):
    ending = server.Ending()
    client = start(application(memoir, "tiny", ending=ending))
    body = {"prompt": UNRELATED, "max_tokens": 200, "stream": stream, "temperature": 0}
    body["generation_config"] = json.dumps({"eos_token_id": None})
    passes = []
    watched = memoir.model.register_forward_pre_hook(lambda *_: passes.append(time.sleep(0.01)))
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(client, "POST", "/v1/completions", body)
        while len(passes) < 10:
            assert not asked.done()
            time.sleep(0.001)
        ending.begin()
        status, said, _ = asked.result()
    watched.remove()
    ending.finish()
    assert len(passes) < 100
    if stream:
        assert events(said)[-1]["error"]["message"] == "the server is ending"
    else:
        assert (status, said["error"]["message"]) == (503, "the server is ending")
    assert client("POST", "/v1/completions", body)[0] == 503


def test_every_refusal_has_one_form(client, keys):
    for method, path, expected in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("GET", "/v1/models/another", 404),
    ):
        status, said, _ = client(method, path, key=keys["acme"])
        assert status == expected and said["error"]["message"]


def test_no_other_model_is_loaded_and_this_one_stays(client, keys):
    for path in ("/load_model", "/reset", "/v1/systemone", "/v1/audio/transcriptions", "/openapi.json"):
        assert client("POST", path, {"model": "gpt2"}, keys["acme"])[0] == 404
    assert client("POST", "/v1/completions", WITHOUT | {"model": "gpt2"}, keys["acme"])[0] == 400
    assert client.complete(FRANCE, keys["acme"]).startswith(" London")


class TestAnotherServer:
    """A transformers whose server is not the one that is known is refused when the server is made."""

    def refused(self, memoir, text):
        with pytest.raises(MemoirError, match=f"knows the server of transformers {server.KNOWN}.*{text}"):
            server.build(memoir.model, memoir.tokenizer, "tiny")

    def test_without_what_is_used(self, memoir, monkeypatch):
        monkeypatch.delattr("transformers.cli.serving.server.build_server")
        self.refused(memoir, "build_server")

    def test_with_other_routes(self, memoir, monkeypatch):
        monkeypatch.setattr(server, "ROUTES", (*server.ROUTES, "/v2/chat"))
        self.refused(memoir, "it has no /v2/chat")

    def test_that_generates_past_its_manager(self, memoir, monkeypatch):
        from transformers.cli.serving.utils import GenerateManager

        async def past(self, model, processor, inputs, config, request_id):
            said = model.generate(**inputs, generation_config=config)
            return "", inputs["input_ids"].shape[-1], said[0]

        monkeypatch.setattr(GenerateManager, "generate_non_streaming", past)
        self.refused(memoir, "passed its manager 0 times")

    def test_that_answers_otherwise(self, memoir, monkeypatch):
        def generate(**_):
            raise AttributeError("a cache of another kind")

        monkeypatch.setattr(memoir.model, "generate", generate)
        self.refused(memoir, "a cache of another kind")

    def test_that_is_not_there(self, memoir, monkeypatch):
        monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
        with pytest.raises(MemoirError, match=r"pip install 'memoir-fast\[serve\]'"):
            server.build(memoir.model, memoir.tokenizer, "tiny")


def test_continuous_batching_stays_off(memoir, monkeypatch):
    """Were a handler to ask for it, it would get an error, not several sequences in one row."""
    from transformers.cli.serving.utils import GenerationState

    monkeypatch.setattr(GenerationState, "use_continuous_batching", lambda *_: True)
    with pytest.raises(MemoirError, match="which memoir serve leaves off"):
        server.build(memoir.model, memoir.tokenizer, "tiny")
