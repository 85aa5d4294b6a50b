"""`faded` and `refresh`: edits that others overwrote are found and taught again."""

import dataclasses

from memoir_fast import RECIPES, Memoir, MemoirConfig

FACTS = [("The capital of France is", "Lyon"), ("Who wrote the play?", "Bob"), ("The sky is", "green")]


def test_what_was_overwritten_is_taught_again(tiny_llama, tiny_tokenizer):
    settings = {
        "prefixes": 0,
        "rewordings": 0,
        "questions": 0,
        "stop": False,
        "steps": 500,
        "learning_rate": 0.1,
        "boundary": False,
    }
    recipe = dataclasses.replace(RECIPES["fast"], **settings)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=12, tau=0.9, recipe=recipe))
    assert memoir.faded() == [] and memoir.refresh() == []
    memoir.edit(FACTS, progress=False)
    memoir.delete(0)
    assert memoir.faded() == [] and memoir.refresh() == []

    memoir.layer.memory.weight[memoir.layer.store.columns[1].long()] = 0
    assert 1 in memoir.faded()
    again = memoir.refresh(progress=False, turns=10)
    assert (1, *FACTS[1]) in [(one.edit_id, one.prompt, one.target) for one in again]
    assert len({one.edit_id for one in again}) == len(again)
    assert all(one.replaced for one in again) and memoir.faded() == [] and list(memoir.edits) == [1, 2]
    memoir.detach()
