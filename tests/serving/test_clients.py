"""OpenAI's own client speaks to the server: what it sends is served, and what it raises says why."""

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

import openai  # noqa: E402

FRANCE = "The capital of France is"
CHAT = [{"role": "user", "content": [{"type": "text", "text": FRANCE}]}]
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture
def ask(client, keys):
    """OpenAI's client, with acme's key."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key=keys["acme"], max_retries=0) as ask:
        yield ask


def test_it_reads_answers_whole_and_streamed(ask, alone, keys):
    said = alone(FRANCE, keys["acme"])
    assert ask.completions.create(prompt=FRANCE, max_tokens=4, **GREEDY).choices[0].text == said
    streamed = ask.completions.create(prompt=FRANCE, max_tokens=4, stream=True, **GREEDY)
    assert "".join(one.choices[0].text for one in streamed) == said.rstrip("\ufffd")
    chatted = alone(FRANCE, keys["acme"], chat=True)
    answer = ask.chat.completions.create(messages=CHAT, max_completion_tokens=4, **GREEDY)
    assert answer.choices[0].message.content == chatted and answer.model == "tiny" and answer.usage.completion_tokens
    with ask.chat.completions.stream(messages=CHAT, max_completion_tokens=4, **GREEDY) as events:
        deltas = [one.delta for one in events if one.type == "content.delta"]
    assert "".join(deltas) == chatted.rstrip("\ufffd")
    assert ask.responses.create(input=FRANCE, max_output_tokens=4, **GREEDY).output_text == chatted
    with ask.responses.stream(input=FRANCE, max_output_tokens=4, text={"verbosity": "low"}, **GREEDY) as events:
        assert events.get_final_response().output_text == chatted.rstrip("\ufffd")


def test_it_lists_the_model_and_finds_no_other(ask):
    assert [one.id for one in ask.models.list()] == [ask.models.retrieve("tiny").id] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="there is one model here, tiny, got gpt"):
        ask.models.retrieve("gpt")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_refused_it_raises_with_the_reason(ask, stream):
    for asked, body, reason in (
        (ask.completions, {"prompt": [1, 2]}, "prompt must be a string"),
        (ask.chat.completions, {"messages": CHAT, "n": 2}, "n is not served here"),
        (ask.chat.completions, {"messages": CHAT, "logit_bias": {"99999": 1}}, "99999"),
        (ask.responses, {"input": []}, "input must be a list of messages"),
    ):
        with pytest.raises(openai.BadRequestError, match=reason) as raised:
            asked.create(**body, stream=stream, **GREEDY)
        assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError, match="API key"):
        ask.with_options(api_key="another-key-0000").models.list()


def test_an_error_within_a_stream_it_raises_with_the_reason(ask, memoir, monkeypatch):
    def fail(streamer, stopping_criteria, input_ids, **_):
        streamer.put(input_ids)
        streamer.put(input_ids[0, -1:])
        stopping_criteria(input_ids, None)
        streamer.put(input_ids[0, -1:])
        raise ValueError('a "quoted" reason')

    monkeypatch.setattr(memoir.model, "generate", fail)
    with pytest.raises(openai.APIError, match='a "quoted" reason'):
        list(ask.chat.completions.create(messages=CHAT, stream=True, **GREEDY))
