"""Which prompts name a subject: against the rule, written plainly."""

import pytest
import torch

from memoir_fast.modules import naming
from memoir_fast.modules.naming import SPELLINGS, TOKENS, have, named, present

VOCABULARY = 40


def subjects(count):
    """Random subjects of few tokens, some with fewer spellings, some with none."""
    names = torch.randint(0, VOCABULARY, (count, SPELLINGS, TOKENS)).int()
    names[torch.arange(TOKENS) >= torch.randint(0, 4, (count, SPELLINGS, 1))] = -1
    return names


@pytest.mark.parametrize("at_once", [7 * SPELLINGS * TOKENS, 1 << 24])
@pytest.mark.parametrize(("rows", "prompts", "length"), [(0, 3, 5), (60, 0, 5), (63, 1, 1), (200, 5, 24), (65, 2, 0)])
def test_the_rule(monkeypatch, at_once, rows, prompts, length):
    monkeypatch.setattr(naming, "_AT_ONCE", at_once)
    names, tokens = subjects(rows), torch.randint(-1, VOCABULARY, (prompts, length))
    expected = [
        [
            not any(spelling[0] >= 0 for spelling in row)
            or any(spelling[0] >= 0 and set(spelling) - {-1} <= set(prompt) for spelling in row)
            for row in names.tolist()
        ]
        for prompt in tokens.tolist()
    ]
    found = named(names, present(tokens, VOCABULARY))
    assert found.dtype == torch.bool and found.shape == (prompts, rows) and found.tolist() == expected
    assert have(names).tolist() == [any(spelling[0] >= 0 for spelling in row) for row in names.tolist()]
    if prompts * rows > 500:
        assert 0.05 < found.float().mean() < 0.95, "both happen"


def test_what_no_token_is_names_nothing():
    names = torch.full((2, SPELLINGS, TOKENS), -1).int()
    names[0, 1, 0] = 0  # the first spelling is missing, the second is token 0
    padding = present(torch.full((1, 4), -1), VOCABULARY)
    assert named(names, padding).tolist() == [[False, True]]
    assert named(names, present(torch.tensor([[-1, 0]]), VOCABULARY)).tolist() == [[True, True]]
