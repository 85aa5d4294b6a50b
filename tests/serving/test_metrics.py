"""What a server counts, as Prometheus reads it."""

import math

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

from memoir_fast import Calibration  # noqa: E402
from memoir_fast.serving.metrics import Metrics  # noqa: E402

FRANCE, UNRELATED = "The capital of France is", "Who wrote the play?"


@pytest.fixture
def scrape(client):
    """A function -> every sample by its name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    def look():
        status, text, headers = client("GET", "/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(text)
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}

    return look


def test_matches_misses_and_requests_are_counted(client, keys, scrape):
    before = scrape()
    asked = [(FRANCE, False), (FRANCE, True), (UNRELATED, False), (UNRELATED, True), (UNRELATED, False)]
    for prompt, stream in asked:
        client.complete(prompt, keys["acme"], stream)
    client("GET", "/a/path/of/chance", key=keys["acme"])
    grown = {name: value - before.get(name, 0) for name, value in scrape().items()}
    assert grown["memoir_prompts_total", "yes"] == 2 and grown["memoir_prompts_total", "no"] == 3
    assert grown["memoir_generation_seconds_count",] == grown["memoir_request_seconds_count", "/v1/completions"] == 5
    assert grown["memoir_request_seconds_count", "other"] == 1
    assert 0 < grown["memoir_generation_seconds_sum",] < grown["memoir_request_seconds_sum", "/v1/completions"]


def test_what_the_memory_holds(memoir, scrape):
    found = scrape()
    assert found["memoir_edits",] == 4 and found["memoir_pages",] == memoir.status().pages
    assert found["memoir_tau",] == memoir.tau and math.isnan(found["memoir_false_match_rate",])
    memoir.calibration = Calibration(0.9, 1e-3, 4, 5, 64, 0.8, 0.02, 0.01, False, None)
    try:
        assert found.keys() == scrape().keys()
        rate = scrape()["memoir_false_match_rate",]
    finally:
        memoir.calibration = None
    assert rate == pytest.approx(1 - math.exp(-math.exp(-5)))


def test_a_generation_that_read_no_prompt_is_no_miss(memoir):
    def cancelled():
        raise RuntimeError("cancelled")

    metrics = Metrics(memoir)
    ids = memoir.tokenizer(FRANCE, return_tensors="pt").input_ids
    metrics.generation(lambda: memoir.model(ids))
    with pytest.raises(RuntimeError, match="cancelled"):
        metrics.generation(cancelled)
    text = metrics.text().decode()
    assert 'memoir_prompts_total{matched="yes"} 1.0' in text and 'memoir_prompts_total{matched="no"} 0.0' in text
    assert "memoir_generation_seconds_count 2.0" in text


def test_nothing_of_prompts_keys_and_banks_is_in_them(client, keys):
    client.complete(FRANCE, keys["acme"])
    text = client("GET", "/metrics")[1]
    assert not [word for word in ("France", "acme", "globex", *keys.values()) if word in text]
