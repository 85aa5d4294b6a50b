"""lm-evaluation-harness, stood in for: requests are scored as each alone, by what their context follows."""

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.integrations.harness import follow_contexts

FACT, OTHER = "The capital of France is", "The river runs through"
ANSWERS = (" Lyon", " the old town and the river", " a")


class StandIn:
    """Scores as the harness's HFLM does: the longest first, in batches, padded with 0 on the right, without a mask."""

    max_length = 64

    def __init__(self, model):
        self.model, self.rows = model, []

    def loglikelihood_rolling(self, ids):
        return self._loglikelihood_tokens(requests=[(None, [0], ids)], override_bs=1)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        order = sorted(range(len(requests)), key=lambda one: -len(requests[one][1] + requests[one][2]))
        found = {}
        for start in range(0, len(order), size := override_bs or 4):
            chunk = order[start : start + size]
            rows = [(requests[one][1] + requests[one][2])[-(self.max_length + 1) :][:-1] for one in chunk]
            width = max(map(len, rows))
            logits = self._model_call(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
            for one, row, own in zip(chunk, rows, logits.log_softmax(dim=-1), strict=True):
                answer = torch.tensor(requests[one][2])
                said = own[len(row) - len(answer) : len(row)].gather(1, answer[:, None])
                found[one] = float(said.sum())
        return [found[one] for one in range(len(requests))]

    def _model_call(self, inps, attn_mask=None, labels=None):
        with torch.no_grad():
            return self.model(inps).logits


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    config = MemoirConfig(routing="early", routing_block=1, tau=0.7, k=14)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit(FACT, "Lyon")
    return memoir


@pytest.fixture
def requests(tiny_tokenizer):
    tokens = {text: tiny_tokenizer(text).input_ids for text in (FACT, OTHER, *ANSWERS)}
    made = [(None, tokens[context], tokens[answer]) for context in (FACT, OTHER) for answer in ANSWERS]
    longer = tokens[FACT] + tokens[ANSWERS[1]][:-1]  # the same row as another request's, cut elsewhere
    return [*made, (None, longer, tokens[ANSWERS[1]][-1:])]


def _alone(memoir, context, answer):
    """The score of an answer said token by token behind its context, by passes over all of it."""
    ids, total = torch.tensor([context + answer]), 0.0
    with memoir.prompts(len(context)), torch.no_grad():
        logits = memoir.model(ids[:, :-1]).logits[0].log_softmax(dim=-1)
    for place, token in enumerate(answer):
        total += float(logits[len(context) - 1 + place, token])
    return total, memoir.last_routes[0].edit_id


def test_each_answer_is_scored_by_what_its_context_follows(memoir, requests):
    expected = [_alone(memoir, context, answer) for _, context, answer in requests]
    assert [route for _, route in expected[:6]] == [0, 0, 0, -1, -1, -1]
    plain = StandIn(memoir.model)
    taken_whole = plain._loglikelihood_tokens(requests)
    lm = StandIn(memoir.model)
    assert follow_contexts(lm, memoir) is lm
    found = lm._loglikelihood_tokens(requests)
    scores = [score for score, _ in expected]
    assert found == pytest.approx(scores, abs=1e-4) and taken_whole != pytest.approx(scores, abs=1e-2)
    memoir.model(torch.tensor([requests[0][1]]))
    assert memoir.last_routes[0].edit_id == 0  # nothing is asked for any more


def test_a_running_text_and_a_batch_that_is_tried(memoir, requests):
    """The one has a context of a token that says nothing; the other is of no request."""
    lm = follow_contexts(StandIn(memoir.model), memoir)
    text = requests[0][1] + requests[0][2]
    with memoir.disabled():
        expected = StandIn(memoir.model).loglikelihood_rolling(text)
    assert lm.loglikelihood_rolling(text) == pytest.approx(expected) and memoir.last_routes[0].edit_id == -1
    assert lm._model_call(torch.ones((2, 5), dtype=torch.int64)).shape == (2, 5, 384)


def test_what_is_no_model_of_the_harness(memoir):
    with pytest.raises(AttributeError, match="_loglikelihood_tokens"):
        follow_contexts(object(), memoir)
