"""Operations in any order: each prompt follows its own edit as it is now, and a folder opened again says the same.

`INTERLEAVINGS=10000 pytest tests/test_interleavings.py` runs ten thousand sequences of up to ten operations.
"""

import copy
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.io import changes, durable
from memoir_fast.io.history import UNDO
from memoir_fast.io.repair import survey

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

PROMPTS = ["The capital of France is", "Which animal lives in", "What is the colour of", "The river runs through",
           "Who wrote the play about", "Where does the road to"]  # fmt: skip
BANK = "acme"
UNRELATED = "In which country is the mountain?"
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=2)
prompts, targets = st.sampled_from(PROMPTS), st.sampled_from(["Rome", "camel", "Greek"])


class Memories(RuleBasedStateMachine):
    """One memory, kept in a folder, beside what it must hold."""

    model = other_model = tokenizer = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.memoir, self.reader, self.ids, self.banked, self.targets = None, None, {}, {}, {}

    @initialize(
        routing=st.sampled_from(["early", "paper"]), page_edits=st.integers(1, 3), further=st.sampled_from([0, 1])
    )
    def begin(self, routing, page_edits, further):
        settings = {"routing": routing, "layer": f"model.layers.{2 - further}.mlp.down_proj", "further": further}
        config = MemoirConfig(
            recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=page_edits, check=False, **settings
        )
        self.plain = self._logits(self.model, UNRELATED)
        self.memoir = Memoir.open(self.model, self.tokenizer, self.folder / "memory", config)

    @rule(prompt=prompts, answer=targets)
    def edit(self, prompt, answer):
        result = self.memoir.edit(prompt, answer)
        assert result.replaced == (prompt in self.ids)
        assert self.ids.setdefault(prompt, result.edit_id) == result.edit_id
        self.targets["", prompt] = answer

    @rule(pairs=st.lists(st.tuples(prompts, targets), min_size=2, max_size=4))
    def edit_in_a_batch(self, pairs):
        for result in self.memoir.edit(pairs, batch=3, progress=False):
            self.ids[result.prompt], self.targets["", result.prompt] = result.edit_id, result.target

    @rule(prompt=prompts, answer=targets)
    def edit_in_a_bank(self, prompt, answer):
        """Who asks for the bank follows it; who asks for none, or for another, is answered as before."""
        asked = self._inputs(prompt)
        with torch.no_grad():
            before = self.model(**asked).logits
        result = self.memoir.edit(prompt, answer, bank=BANK)
        assert self.banked.setdefault(prompt, result.edit_id) == result.edit_id
        self.targets[BANK, prompt] = answer
        with torch.no_grad():
            assert torch.equal(self.model(**asked).logits, before)
            for bank, own in ((BANK, result.edit_id), ("globex", self.memoir.edits.id_of(prompt))):
                with self.memoir.banks(bank):
                    self.model(**asked)
                    assert own is None or self.memoir.last_routes[0].edit_id == own

    @rule(prompt=prompts)
    def delete_from_the_bank(self, prompt):
        if prompt in self.banked:
            self.memoir.delete(self.banked.pop(prompt))
            del self.targets[BANK, prompt]

    @rule(prompt=prompts, beams=st.sampled_from([1, 3]))
    def generate(self, prompt, beams):
        """Each row of a batch, by beams or greedily, goes where its prompt goes by itself."""
        asked, rows = self._inputs(prompt, UNRELATED), [prompt, UNRELATED]
        self.model.generate(**asked, num_beams=beams, max_new_tokens=3, do_sample=False, pad_token_id=0)
        routes = [one.edit_id for one in self.memoir.last_routes[::beams]]
        for row, route in zip(rows, routes, strict=True):
            self._logits(self.model, row)
            assert route == self.memoir.last_routes[0].edit_id, (row, routes)

    @rule(prompt=prompts)
    def delete(self, prompt):
        if prompt in self.ids:
            self.memoir.delete(self.ids.pop(prompt))
            del self.targets["", prompt]

    @rule()
    def calibrate(self):
        if self.ids:
            self.memoir.calibrate(["What is it?", UNRELATED] * 10, 0.4)

    @rule()
    def compact(self):
        self.memoir.compact(progress=False)

    @rule()
    def refresh(self):
        self.memoir.refresh(turns=1, progress=False)

    @rule()
    def undo(self):
        """What the folder says without its last change is what there is."""
        saved, journal = durable.read_pair(self.folder / "memory")
        changed = [record for record in journal or [] if record.kind != UNDO]
        if not changed:
            return
        edits = dict(saved.edits)
        for record in changed[:-1]:
            changes.apply_texts(edits, record)
        self.memoir.undo()
        self.ids = {edit.prompt: edit_id for edit_id, edit in edits.items() if not edit.bank}
        self.banked = {edit.prompt: edit_id for edit_id, edit in edits.items() if edit.bank}
        self.targets = {(edit.bank, edit.prompt): edit.target for edit in edits.values()}

    @rule()
    def save(self):
        self.memoir.save_pretrained(self.folder / "memory")

    @rule()
    def open_again(self):
        before = [self._logits(self.model, prompt) for prompt in PROMPTS]
        found = survey(self.folder / "memory")
        assert not found.damage and found.kept == self.memoir.edits
        self.memoir.detach()
        self.memoir = Memoir.open(self.model, self.tokenizer, self.folder / "memory")
        assert all(map(torch.equal, before, [self._logits(self.model, prompt) for prompt in PROMPTS]))

    @rule()
    def another_reads(self):
        """Who has the folder loaded takes over what is new, and then answers as the writer does, in every bit."""
        if self.reader is None:
            self.reader = Memoir.from_pretrained(self.other_model, self.tokenizer, self.folder / "memory")
        else:
            self.reader.reload()
        assert self.reader.edits == self.memoir.edits
        for prompt in (*PROMPTS, UNRELATED):
            own, other = self._logits(self.model, prompt), self._logits(self.other_model, prompt)
            assert torch.equal(own, other) and self.reader.last_routes == self.memoir.last_routes, prompt

    @rule(prompt=prompts)
    def change_while_it_generates(self, prompt):
        with self.memoir.layer.views.generation():
            before = self._logits(self.model, prompt)
            self.memoir.edit(prompt, "Rome")
            if len(self.ids) > 1:
                self.memoir.compact(progress=False)
            assert torch.equal(self._logits(self.model, prompt), before)
        self.ids[prompt], self.targets["", prompt] = self.memoir.edits.id_of(prompt), "Rome"

    @rule()
    def merge_a_copy(self):
        self.memoir.save_pretrained(self.folder / "copy")
        own = sorted([*self.ids.values(), *self.banked.values()])
        assert sorted(self.memoir.merge(self.folder / "copy").same) == own

    @invariant()
    def each_prompt_follows_its_edit(self):
        if self.memoir is None:
            return
        assert self.memoir.edits == {
            (self.banked if bank else self.ids)[prompt]: Edit(prompt, target, bank=bank)
            for (bank, prompt), target in self.targets.items()
        }
        with torch.no_grad():
            self.model(**self._inputs(*PROMPTS))
        for prompt, route in zip(PROMPTS, self.memoir.last_routes, strict=True):
            own = route.edit_id
            allowed = [self.ids[prompt]] if prompt in self.ids else [-1, *self.ids.values()]
            assert own in allowed, (prompt, own, self.ids)
        assert not self.memoir.layer.memory._copies

    @invariant()
    def what_is_unrelated_is_left_alone(self):
        if self.memoir is not None:
            logits = self._logits(self.model, UNRELATED)
            assert self.memoir.last_routes[0].edit_id != -1 or torch.equal(logits, self.plain)

    def _inputs(self, *rows):
        return self.tokenizer(list(rows), return_tensors="pt", padding=True)

    def _logits(self, model, prompt):
        with torch.no_grad():
            return model(self.tokenizer(prompt, return_tensors="pt").input_ids).logits

    def teardown(self):
        for memoir in (self.memoir, self.reader):
            if memoir is not None:
                memoir.detach()
        shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_operations_in_any_order(tiny_llama, tiny_tokenizer):
    Memories.model, Memories.other_model, Memories.tokenizer = tiny_llama, copy.deepcopy(tiny_llama), tiny_tokenizer
    many = int(os.environ.get("INTERLEAVINGS", "6"))
    run_state_machine_as_test(
        Memories,
        settings=settings(
            max_examples=many, stateful_step_count=10, deadline=None, derandomize=many <= 6,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
