"""Whatever stops a change of an opened memory, and at whatever line: the memory and its folder say the same."""

import dataclasses
import shutil
from contextlib import suppress

import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.modules import code_store

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)
PROMPTS = [f"The number {number} is" for number in range(8)]
FACTS = [(prompt, ["Rome", "camel", "Greek"][number % 3]) for number, prompt in enumerate(PROMPTS)]


@torch.no_grad()
def said(memoir):
    """Its edits, and what each prompt is answered."""
    ids = [memoir.tokenizer(prompt, return_tensors="pt").input_ids for prompt in PROMPTS]
    return dict(memoir.edits), [memoir.model(one).logits for one in ids]


CHANGES = {
    "delete": lambda memoir: memoir.delete_bank("acme"),
    "teach again": lambda memoir: memoir.edit(FACTS[0][0], "Bob"),
    "calibrate": lambda memoir: memoir.calibrate(["What is it?", "Where is the mountain?"] * 10, 0.4),
    "save": lambda memoir: memoir.save_pretrained(memoir._durable.folder),
}
KEEPING = [
    "upkeep.py",
    "memoir.py",
    "kept.py",
    "atomic.py",
    *(f"core/{name}.py" for name in ("live_edits", "threshold")),
]
KEEPING += [f"modules/{name}.py" for name in ("mask_store", "code_store")]
KEEPING += [f"io/{name}.py" for name in ("durable", "journal", "checkpoint", "pages", "changes", "frames")]
STOPS = 2  # of each change; with 300, every line is one


def test_where_a_change_is_stopped_memory_and_folder_are_alike(
    tiny_llama, tiny_tokenizer, tmp_path, monkeypatch, stopped_at
):
    """At any line: what is taught then is kept, or refused until the folder is opened again."""
    monkeypatch.setattr(code_store, "_FIRST_CAPACITY", 1)  # rows close ranks early
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2)
    first = tmp_path / "first"
    with Memoir.open(tiny_llama, tiny_tokenizer, first, config) as memoir:
        memoir.edit([FACTS[0], *(Edit(*one, bank="acme") for one in FACTS[1:5]), *FACTS[5:]], progress=False)
        memoir.delete(1)
        memoir.delete(2)
    memoir.detach()

    def changed(change, line):
        """The lines that were run, and whether memory and folder are alike."""
        folder = tmp_path / f"{change} {line}"
        shutil.copytree(first, folder)
        memoir = Memoir.open(tiny_llama, tiny_tokenizer, folder)
        with stopped_at(line, KeyboardInterrupt, KEEPING) as run, suppress(KeyboardInterrupt):
            CHANGES[change](memoir)
        for taught in (("One more", "Rome"), (PROMPTS[3], "camel")):
            with suppress(CheckpointError):
                memoir.edit(*taught)
        before = said(memoir)
        with Memoir.open(memoir.detach(), tiny_tokenizer, folder) as again:
            alike = again.edits == before[0] and all(map(torch.equal, said(again)[1], before[1]))
        again.detach()
        return run, alike

    for change in CHANGES:
        lines = len(changed(change, 0)[0])
        for line in range(lines // (2 * STOPS), lines, lines // STOPS):
            run, alike = changed(change, line)
            assert alike, (change, run[line - 1])
