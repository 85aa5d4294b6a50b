"""The routing code against the rule written out token by token: sentences, questions, turns, parts, padding."""

import math

import pytest
import torch

from memoir_fast.mask_format import unpack
from memoir_fast.modules.prompt_sums import OTHER, PLAIN, SENTENCES, USER
from memoir_fast.modules.routing_code import ASKS, BEGINS_WORD, ENDS, ENDS_SOFTLY, INITIAL, RoutingCode

HIDDEN, WIDTH, K = 6, 96, 20
WORD, PIECE, STOP, QUESTION, BREAK, TITLE, BLANK = range(7)
MARKS = {WORD: BEGINS_WORD, STOP: ENDS_SOFTLY, QUESTION: ENDS_SOFTLY | ASKS, BREAK: ENDS, TITLE: BEGINS_WORD | INITIAL}
OPEN, CLOSE = [20, 21], [22]


@pytest.fixture
def code():
    weights = torch.rand(24) + 0.1
    weights[[BLANK, BREAK, *OPEN, *CLOSE]] = 0
    marks = torch.tensor([MARKS.get(one, BEGINS_WORD if 6 < one < 20 else 0) for one in range(24)], dtype=torch.uint8)
    return RoutingCode(weights, marks, torch.randn(HIDDEN), torch.randn(HIDDEN, WIDTH), K, 1, 1.5, [OPEN], [CLOSE])


def by_hand(code, hidden, ids):
    """Features [3, H] in float64, from sentences made one token at a time."""
    role, sentences, ended = PLAIN, [], True
    for place, token in enumerate(ids):
        before, earlier = (ids[place - back] if place >= back else None for back in (1, 2))
        if place and [before, token] == OPEN:
            if role == PLAIN:
                sentences = []
            for sentence in sentences:
                sentence["latest"] = sentence["asks"] = False
            role, ended = USER, True
            continue
        if role != PLAIN and [token] == CLOSE:
            role = OTHER
        soft = before is not None and MARKS.get(before, 0) & ENDS_SOFTLY and int(code.marks[token]) & BEGINS_WORD
        if earlier is not None and MARKS.get(earlier, 0) & INITIAL:
            soft = False
        ended = ended or bool(soft) or (before is not None and bool(MARKS.get(before, 0) & ENDS))
        weight = float(code.weights[token]) if role in (PLAIN, USER) else 0.0
        if not weight:
            continue
        if ended:
            sentences.append({"sum": torch.zeros(HIDDEN).double(), "mass": 0.0, "asks": False, "latest": True})
        ended = False
        row = hidden[place].double()
        sentences[-1]["sum"] += weight * row / row.pow(2).mean().sqrt()
        sentences[-1]["mass"] += weight
        sentences[-1]["asks"] |= token == QUESTION
    kept = sentences[-SENTENCES:]
    if not kept:
        return code.mean.double().expand(3, -1)

    def mean(shares):
        mass = sum(share * one["mass"] for share, one in zip(shares, kept, strict=True))
        total = sum(share * one["sum"] for share, one in zip(shares, kept, strict=True))
        return total / mass if mass else code.mean.double()

    later = [sum(one["mass"] for one in kept[place + 1 :]) for place in range(len(kept))]
    everything = mean([math.exp(-one / code.fade) for one in later])
    asking = [place for place, one in enumerate(kept) if one["asks"]]
    asked = mean([float(place == asking[-1]) for place in range(len(kept))]) if asking else everything
    return torch.stack([everything, asked, mean([float(one["latest"]) for one in kept])])


def read(code, hidden, ids, parts=None):
    """The sums of one prompt that comes in parts of those lengths."""
    sums, start = None, 0
    for size in parts or [len(ids)]:
        some = torch.tensor([ids[start : start + size]])
        sums = code.read(sums, hidden[None, start : start + size], some, torch.ones_like(some).bool())
        start += size
    return sums


PROMPTS = {
    "one word": [7],
    "one sentence": [7, 8, PIECE, 9, STOP],
    "several": [7, 8, STOP, 9, 10, QUESTION, 11, 12, STOP, 13],
    "an initial": [7, TITLE, STOP, 8, STOP, 9],
    "a stop in a number": [7, STOP, PIECE, 8, STOP, 9],
    "lines": [7, 8, BREAK, PIECE, 9, BREAK, BREAK, 10],
    "nothing that weighs": [BLANK, BREAK, BLANK],
    "more sentences than are kept": [one for word in range(7, 19) for one in (word, PIECE, STOP)],
    "a chat": [*OPEN, 7, 8, QUESTION, *CLOSE, 9, 10],
    "a system prompt": [7, 8, STOP, *CLOSE, *OPEN, 9, 10, QUESTION, *CLOSE, 11],
    "two turns": [*OPEN, 7, QUESTION, *CLOSE, 8, 9, *CLOSE, *OPEN, 10, 11, STOP, 12, *CLOSE, 13],
    "a question, then thanks": [*OPEN, 7, 8, QUESTION, 9, STOP, *CLOSE, 10],
    "a closing mark in a plain prompt": [7, *CLOSE, 8, QUESTION],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_features_are_those_of_the_rule(code, name):
    ids = PROMPTS[name]
    hidden = torch.randn(len(ids), HIDDEN) * 50
    found = code.features(read(code, hidden, ids))[0].double()
    torch.testing.assert_close(found, by_hand(code, hidden, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_random_prompts_in_random_parts(code, seed):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 23, (40,), generator=draw).tolist()
    for start in (5, 20, 31):
        ids[start : start + 2] = OPEN
    hidden = torch.randn(40, HIDDEN, generator=draw)
    expected = by_hand(code, hidden, ids)
    cuts = torch.randperm(39, generator=draw)[:6].sort().values.add(1).tolist()
    parts = [b - a for a, b in zip([0, *cuts], [*cuts, 40], strict=True)]
    for sizes in (None, [1] * 40, parts):
        found = code.features(read(code, hidden, ids, sizes))[0].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_padding_says_nothing_whatever_it_holds(code):
    prompts = [[7, 8, QUESTION], [*OPEN, 9, 10, STOP, *CLOSE, 11]]
    longest = max(map(len, prompts)) + 2
    ids, hidden = torch.full((2, longest), CLOSE[0]), torch.full((2, longest, HIDDEN), float("nan"))
    real, alone = torch.zeros(2, longest, dtype=torch.bool), []
    for row, own in enumerate(prompts):
        states = torch.randn(len(own), HIDDEN)
        ids[row, -len(own) :], hidden[row, -len(own) :], real[row, -len(own) :] = torch.tensor(own), states, True
        alone.append(code.features(read(code, states, own)))
    together = code.features(code.read(None, hidden, ids, real))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_what_the_model_says_weighs_nothing_but_may_close_its_turn(code):
    ids, said, further = [*OPEN, 7, 8, QUESTION, *CLOSE], [9, 10, QUESTION], [*CLOSE, *OPEN, 11, 12]
    hidden = torch.randn(20, HIDDEN)
    whole = read(code, hidden, [*ids, *said, *further])
    sums = code.hear(read(code, hidden, ids), torch.tensor([said]))
    rest = torch.tensor([further])
    sums = code.read(sums, hidden[None, len(ids) + len(said) : len(ids) + len(said) + 5], rest, rest >= 0)
    torch.testing.assert_close(code.features(sums), code.features(whole))
    assert sums.role.tolist() == [USER] and sums.chat.all()


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_closing_mark_of_several_tokens_is_no_users_where_no_part_ends_in_it(code, cut):
    long = RoutingCode(code.weights, code.marks, code.mean, code.projection, K, 1, 1.5, [OPEN], [[7, *CLOSE, 8]])
    ids = [*OPEN, 9, 10, QUESTION, 7, *CLOSE, 8, 11, 12, 13]
    hidden = torch.randn(len(ids), HIDDEN)
    whole, parts = read(long, hidden, ids), read(long, hidden, ids, [cut, len(ids) - cut])
    assert whole.role.tolist() == parts.role.tolist() == [OTHER]
    own, early = float(code.weights[[9, 10, QUESTION]].sum()), float(code.weights[ids[5:cut]].sum()) if cut < 8 else 0.0
    assert float(whole.mass.sum()) == pytest.approx(own)
    assert float(parts.mass.sum()) == pytest.approx(own + early)


def test_a_code_is_the_largest_projections_signed(code):
    features = torch.randn(50, HIDDEN)
    projected = (features - code.mean) @ code.projection
    expected = torch.zeros(50, WIDTH, dtype=torch.bool)
    expected.scatter_(1, projected.argsort(dim=1, descending=True, stable=True)[:, :K], True)
    assert torch.equal(unpack(code.packed(features), WIDTH), expected)
    sums = read(code, torch.randn(3, HIDDEN), [7, 8, QUESTION])
    assert code.masks(sums).shape == (1, 3, 4) and torch.equal(code.masks(sums)[0, 0], code.masks(sums)[0, 2])


@pytest.mark.parametrize("unknown", [-1, 24, 30])
def test_a_token_without_a_name_weighs_the_usual(code, unknown):
    hidden = torch.randn(2, HIDDEN)
    sums = code.read(None, hidden[None], torch.tensor([[unknown, 7]]), torch.ones(1, 2).bool())
    assert float(sums.mass.sum()) == pytest.approx(code.typical + float(code.weights[7]))


def test_a_token_that_is_none_of_the_vocabulary_names_nothing(code):
    size = len(code.weights)
    ids = torch.tensor([[8, size, size + 7, -1]])
    sums = code.read(None, torch.randn(1, 4, len(code.mean)), ids, torch.ones_like(ids).bool())
    assert code.weights[size - 1] > 0 and sums.words.tolist() == ids.tolist()
    assert code.said(sums).nonzero().tolist() == [[0, 0], [0, 1 + 8]]


def test_it_stays_float32_and_refuses_what_cannot_be(code):
    ids = [7, 8]
    before = code.features(read(code, torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1)), ids))
    code.half()
    assert code.weights.dtype == code.mean.dtype == code.projection.dtype == torch.float32
    after = code.features(read(code, torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1)), ids))
    assert torch.equal(before, after) and f"width={WIDTH}" in repr(code)
    with pytest.raises(ValueError, match="k must lie in"):
        RoutingCode(code.weights, code.marks, code.mean, code.projection, WIDTH + 1, 1, 1.0)
    with pytest.raises(ValueError, match="each token has a weight and a mark, got 24 weights and 23 marks"):
        RoutingCode(code.weights, code.marks[:-1], code.mean, code.projection, K, 1, 1.0)


def test_a_state_that_is_loaded_is_what_tokens_weigh_and_mean(code):
    ids, hidden = PROMPTS["several"], torch.randn(10, HIDDEN)
    state = {name: one.clone() for name, one in code.state_dict().items()}
    assert set(state) == {"weights", "marks", "mean", "projection"}
    state["weights"] = state["weights"].flip(0)
    state["marks"][QUESTION] = ENDS
    other = RoutingCode(*state.values(), K, 1, 1.5, [OPEN], [CLOSE])
    code.load_state_dict(state)
    found, expected = (one.features(read(one, hidden, ids)) for one in (code, other))
    assert torch.equal(found, expected) and code.typical == other.typical


def test_sums_of_selected_rows_are_those_rows(code):
    ids = torch.tensor([[7, 8, QUESTION], [9, 10, 11]])
    sums = code.read(None, torch.randn(2, 3, HIDDEN), ids, ids >= 0)
    again = sums.each(lambda one: one.index_select(0, torch.tensor([1, 1, 0])))
    assert torch.equal(code.masks(again), code.masks(sums)[[1, 1, 0]])
