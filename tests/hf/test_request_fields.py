"""Which fields of requests are served, passed over without harm, or refused."""

import pytest

from memoir_fast.hf.request_fields import CHAT, RESPONSES, TEXT, require_served, require_texts


@pytest.mark.parametrize("api", [CHAT, TEXT, RESPONSES])
def test_a_field_that_nobody_knows_is_refused(api):
    with pytest.raises(ValueError, match="future is not served here, got 3: leave it out"):
        require_served(api, {"model": "tiny", "future": 3})
    require_served(api, {"model": "tiny", "future": None})


def test_one_api_has_not_anothers_fields():
    require_served(TEXT, {"prompt": "a"})
    with pytest.raises(ValueError, match="prompt is not served here"):
        require_served(RESPONSES, {"input": "a", "prompt": {"id": "p"}})
    with pytest.raises(ValueError, match="logit_bias is not served here, but as {}"):
        require_served(TEXT, {"prompt": "a", "logit_bias": {"1": 2}})
    require_served(CHAT, {"messages": [], "logit_bias": {"1": 2}})


@pytest.mark.parametrize("value", [True, 1.5, 2, "1", [1], -1])
def test_numbers_and_booleans_are_told_apart(value):
    with pytest.raises(ValueError, match="n is not served"):
        require_served(CHAT, {"n": value})
    require_served(CHAT, {"n": 1, "presence_penalty": 0.0, "logprobs": False})


def test_no_tool_may_be_asked_for_where_there_is_none():
    require_served(CHAT, {"tool_choice": "none", "tools": []})
    with pytest.raises(ValueError, match="tool_choice"):
        require_served(CHAT, {"tool_choice": "none", "tools": [{}]})


def test_messages_of_text_pass():
    require_texts([{"content": "a"}, {"content": None}, {}, {"content": [{"type": "output_text", "text": "b"}]}])
    with pytest.raises(ValueError, match="got one of the type 'input_audio'"):
        require_texts([{"content": [{"type": "input_audio", "input_audio": {}}]}])
