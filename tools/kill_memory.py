"""Kills processes that edit, delete and save a memory opened by `Memoir.open`, and looks for what was acknowledged.

`python tools/kill_memory.py --kills 1000`: each process works on a tiny random model until SIGKILL, at a moment drawn
anew; what it had acknowledged must be in the folder, and the next process must open it. Exit code 1: something is lost.
"""

import argparse
import dataclasses
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Found:
    """What the kills showed."""

    kills: int = 0
    acknowledged: int = 0
    """Edits and deletions."""
    lost: int = 0


def model_and_tokenizer() -> tuple[Any, Any]:
    """The tiny random model of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    conftest = importlib.import_module("conftest")
    return conftest.make_tiny_llama(), conftest.make_tiny_tokenizer()


def work(folder: str, number: int) -> None:
    """Edits, deletes and saves for ever, and prints what is acknowledged, a JSON list a line."""
    from memoir_fast import RECIPES, Memoir, MemoirConfig

    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
    config = MemoirConfig(recipe=recipe, tau=0.9, k=16, background=8, page_edits=2, routing="paper", check=False)
    there = (Path(folder) / "memory_config.json").exists()
    model, tokenizer = model_and_tokenizer()
    memoir = Memoir.open(model, tokenizer, folder, None if there else config)
    while True:
        if number % 5 == 4 and memoir.edits:
            gone = min(memoir.edits)
            _say("deleting", gone)
            memoir.delete(gone)
            _say("deleted", gone)
        elif number % 7 == 6:
            memoir.save_pretrained(folder)
        _say("edited", memoir.edit(f"The number {number} is", "Rome").edit_id, number)
        number += 1


def _say(*words: object) -> None:
    print(json.dumps(words), flush=True)


def kill(kills: int, seed: int, folder: str) -> Found:
    """Runs and kills so many processes, one after the other, on one folder."""
    from memoir_fast.io import durable

    draw, found, live, number = random.Random(seed), Found(), {}, 0
    for _ in range(kills):
        said, going = _killed(folder, number, draw)
        for what, edit_id, *more in said:
            if what == "edited":
                live[edit_id] = more[0]
            elif what == "deleted":
                del live[edit_id]
            found.acknowledged += what != "deleting"
        there = {}
        if (Path(folder) / "memory_config.json").exists():
            edits = durable.current_edits(folder)[1]
            there = {edit_id: int(edit.prompt.split()[2]) for edit_id, edit in edits.items()}
        found.lost += sum(there.get(one) != live[one] for one in live if one != going)
        found.lost += max(0, len(there.keys() - live.keys()) - 1)  # one may be there that was not acknowledged yet
        found.kills += 1
        live = there
        number = max([number, *(value + 1 for value in there.values())])
    return found


def _killed(folder: str, number: int, draw: random.Random) -> tuple[list[list], int | None]:
    """What a process said until it was killed, and the edit that it was deleting then."""
    command = [sys.executable, __file__, "--work", folder, "--number", str(number)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    said, after = [], draw.randrange(12)
    for line in child.stdout:
        said.append(json.loads(line))
        if len(said) > after:
            break
    try:
        child.wait(draw.random() * 0.1)  # and then in the middle of something
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    said += [json.loads(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    deleting = [edit_id for what, edit_id, *_ in said[-1:] if what == "deleting"]
    return said, deleting[0] if deleting else None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        work(given.work, given.number)
    with tempfile.TemporaryDirectory() as folder:
        found = kill(given.kills, given.seed, folder)
    print(f"{found.kills} kills, {found.acknowledged} acknowledged changes, {found.lost} lost")
    return 1 if found.lost else 0


if __name__ == "__main__":
    sys.exit(main())
