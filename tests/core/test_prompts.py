"""`Prompts`: those of chosen edits alone, looked up one at a time."""

import random

import torch

from memoir_fast import Edit
from memoir_fast.core.prompts import Prompts

EDITS = {number: Edit(f"The number {number} is", "odd" if number % 2 else "even") for number in range(100)}
CHOSEN = torch.arange(100) % 3 == 0


def find(prompt):
    return [number for number, edit in EDITS.items() if edit.prompt == prompt]


def test_it_is_the_list_of_their_prompts():
    prompts, listed = Prompts(EDITS, CHOSEN, find), [EDITS[number].prompt for number in range(0, 100, 3)]
    assert list(prompts) == listed and len(prompts) == 34 and prompts[-1] == listed[-1] and prompts[3:5] == listed[3:5]
    assert (
        EDITS[3].prompt in prompts and EDITS[4].prompt not in prompts and "another" not in prompts and 3 not in prompts
    )
    assert random.Random(1).sample(prompts, 4) == random.Random(1).sample(listed, 4)


def test_a_sample_looks_few_of_them_up():
    looked_up = []

    class Counted(dict):
        def __getitem__(self, number):
            looked_up.append(number)
            return super().__getitem__(number)

    random.Random(1).sample(Prompts(Counted(EDITS), CHOSEN, find), 4)
    assert len(looked_up) == 4
