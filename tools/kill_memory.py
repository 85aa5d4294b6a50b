"""Kills processes that change a memory opened by `Memoir.open`, or repair one, and looks for what was acknowledged.

    python tools/kill_memory.py --kills 1000 --seed 7

Each child is forked once everything is imported, opens the folder that its predecessor was killed over, and edits,
edits anew, deletes, undoes, compacts and saves a tiny random model's memory until SIGKILL, at a moment drawn by chance;
every fifth repairs a damaged copy. A child says what the memory is to hold before each change, and what it holds after
it: the folder must then hold the one or the other, nothing between, and open. Exit code 1: something is lost or wrong.
"""

import argparse
import dataclasses
import importlib
import json
import logging
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

from memoir_fast import RECIPES, Memoir, MemoirConfig  # noqa: E402
from memoir_fast.errors import CheckpointError  # noqa: E402
from memoir_fast.io import changes, durable, repair  # noqa: E402
from memoir_fast.io.history import UNDO  # noqa: E402

LONGEST_WAIT = 0.05  # seconds from what a child said last to its kill
MOST_SAID = 9  # changes that a child may finish
MOST_LIVE = 12  # edits
MOST_IDS = 60  # edits that were ever made in a folder, before another is begun
TARGETS = ("Rome", "camel", "Greek")

Texts = dict[str, str]
"""What a memory holds: targets by prompt."""


@dataclasses.dataclass
class Found:
    """What the kills showed."""

    kills: int = 0
    repairs: int = 0
    opening: int = 0
    """Kills before a folder was open."""
    acknowledged: int = 0
    undecided: int = 0
    """Kills within a change, which was there, or not."""
    folders: int = 1


# What a child does: each takes the memory, what it holds and chance, and says what it will hold and how that is done.
Operation = Callable[[Memoir, Texts, random.Random], tuple[Texts, Callable[[], Any]]]


def edit(memoir: Memoir, texts: Texts, draw: random.Random) -> tuple[Texts, Callable[[], Any]]:
    prompt, target = f"The number {draw.randrange(1000)} is", draw.choice(TARGETS)
    return texts | {prompt: target}, lambda: memoir.edit(prompt, target)


def edit_anew(memoir: Memoir, texts: Texts, draw: random.Random) -> tuple[Texts, Callable[[], Any]]:
    prompt, target = draw.choice([*texts] or ["The number 0 is"]), draw.choice(TARGETS)
    return texts | {prompt: target}, lambda: memoir.edit(prompt, target)


def delete(memoir: Memoir, texts: Texts, draw: random.Random) -> tuple[Texts, Callable[[], Any]]:
    gone = draw.choice([*texts] or [""])
    edit_id = memoir.edits.id_of(gone)
    if edit_id is None:
        return texts, lambda: None
    return {prompt: target for prompt, target in texts.items() if prompt != gone}, partial(memoir.delete, edit_id)


def compact(memoir: Memoir, texts: Texts, _: random.Random) -> tuple[Texts, Callable[[], Any]]:
    return texts, lambda: memoir.compact(progress=False)


def snapshot(memoir: Memoir, texts: Texts, _: random.Random) -> tuple[Texts, Callable[[], Any]]:
    assert memoir._durable is not None
    folder = memoir._durable.folder
    return texts, lambda: memoir.save_pretrained(folder)


def undo(memoir: Memoir, texts: Texts, _: random.Random) -> tuple[Texts, Callable[[], Any]]:
    assert memoir._durable is not None
    saved, journal = durable.read_pair(memoir._durable.folder)
    changed = [record for record in journal or [] if record.kind != UNDO]
    if not changed:
        return texts, lambda: None
    edits = dict(saved.edits)
    for record in changed[:-1]:
        changes.apply_texts(edits, record)
    return {one.prompt: one.target for one in edits.values()}, memoir.undo


OPERATIONS: dict[Operation, int] = {edit: 6, edit_anew: 2, delete: 3, snapshot: 2, compact: 1, undo: 2}
"""By how often each is drawn."""


def change_until_killed(opened: Callable[[], Memoir], draw: random.Random, say: Callable[[Any], Any]) -> None:
    """A child's part."""
    memoir = opened()
    texts = {one.prompt: one.target for one in memoir.edits.values()}
    say(["is", texts])
    while True:
        (operation,) = draw.choices(list(OPERATIONS), list(OPERATIONS.values()))
        if len(texts) >= MOST_LIVE:
            operation = delete
        texts, change = operation(memoir, texts, draw)
        say(["to", texts])
        change()
        say(["is", {one.prompt: one.target for one in memoir.edits.values()}])


def kill_one(work: Callable[[Callable[[Any], Any]], None], draw: random.Random, waits: int) -> list[Any]:
    """Forks, kills, and gives what the child said; `waits` is how much of that to wait for."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(hear)
            work(lambda words: os.write(say, json.dumps(words).encode() + b"\n"))
        except BaseException:
            os.write(say, b"failed\n" + traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(say)
    said, until = b"", time.monotonic() + 60
    while said.count(b"\n") < waits and select.select([hear], [], [], until - time.monotonic())[0]:
        piece = os.read(hear, 1 << 16)
        if not piece:
            break
        said += piece
    time.sleep(draw.uniform(0, LONGEST_WAIT))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(hear, "rb") as file:
        said += file.read()
    if b"failed\n" in said:
        raise AssertionError(said.decode())
    return [json.loads(line) for line in said.split(b"\n")[:-1]]


def on_disk(folder: Path) -> tuple[Texts, int]:
    """What a folder holds now, all of it tried, and its greatest id; AssertionError where it is damaged."""
    if not (folder / "memory_config.json").exists():
        return {}, 0
    found = repair.survey(folder)
    if found.damage:
        raise AssertionError(f"damaged: {found.damage}")
    edits = durable.current_edits(folder)[1]
    if edits != found.kept:
        raise AssertionError(f"two ways of reading differ: {edits}, {found.kept}")
    return {one.prompt: one.target for one in edits.values()}, max(edits, default=0)


def require_one_of(there: Texts, before: Texts, said: list[Any]) -> None:
    """AssertionError where a folder holds neither what was acknowledged last nor what was under way."""
    states = [before, *(texts for _, texts in said)]
    if said and said[0][1] != before:
        raise AssertionError(f"opened, it holds {said[0][1]}, the folder held {before}")
    for (_, wanted), (what, reached) in zip(said, said[1:], strict=False):
        if what == "is" and reached != wanted:
            raise AssertionError(f"it holds {reached}, where it was to hold {wanted}")
    allowed = states[-2:] if said and said[-1][0] == "to" else states[-1:]
    if there not in allowed:
        raise AssertionError(f"the folder holds {there}, where it must hold one of {allowed}")


def kill_a_repair(folder: Path, texts: Texts, draw: random.Random) -> None:
    """Kills a repair of a damaged copy; AssertionError where something in between is there."""
    copy, new = folder.with_name("damaged"), folder.with_name("repaired")
    shutil.copytree(folder, copy)
    path = draw.choice(sorted(path for path in copy.iterdir() if path.stat().st_size))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    kill_one(lambda _: _repair(copy, new), draw, 0)
    left = [path for path in folder.parent.iterdir() if path not in (folder, copy, new)]
    if path.read_bytes() != content or any(not one.name.startswith(".repaired.") for one in left):
        raise AssertionError(f"a repair has changed more than its own folder: {left}")
    if new.exists():
        found = repair.survey(copy)
        edits = [*found.kept.values(), *found.lost.values(), *found.unsure.values()]
        missing = texts.items() - {(one.prompt, one.target) for one in edits}
        if missing and not found.unreadable and not found.unsure:
            raise AssertionError(f"{missing} are neither kept nor named, after {found.damage}")
        if found.saved is not None and repair.survey(new).kept != found.kept:
            raise AssertionError(f"what was repaired is not what there was: {found.damage}")
    for one in (copy, new, *left):
        shutil.rmtree(one, ignore_errors=True)


def _repair(copy: Path, new: Path) -> None:
    with suppress(CheckpointError):  # a flipped bit may make a newer version of a file, or leave nothing to be read
        repair.repair(copy, new)
    time.sleep(60)


def run(root: Path, kills: int, seed: int, found: Found) -> None:
    """Kills so many children, and counts in `found`; AssertionError where something is lost or wrong."""
    conftest = importlib.import_module("conftest")
    model, tokenizer = conftest.make_tiny_llama(), conftest.make_tiny_tokenizer()
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
    config = MemoirConfig(recipe=recipe, tau=0.9, k=16, background=8, page_edits=2, routing="paper", check=False)
    draw, folder, texts, ids = random.Random(seed), root / "0" / "memory", Texts(), 0
    for _ in range(kills):
        if found.kills % 100 == 99:
            print(f"{found.kills} kills", file=sys.stderr, flush=True)
        found.kills += 1
        if ids > MOST_IDS:
            shutil.rmtree(folder.parent)
            found.folders += 1
            folder, texts = root / str(found.folders) / "memory", {}
        if found.kills % 5 == 0 and (folder / "memory_config.json").exists():
            found.repairs += 1
            kill_a_repair(folder, texts, draw)
            continue
        own = random.Random(draw.random())
        given = None if (folder / "memory_config.json").exists() else config
        opened = partial(Memoir.open, model, tokenizer, folder, given)
        said = kill_one(partial(change_until_killed, opened, own), draw, draw.randrange(2 * MOST_SAID))
        there, ids = on_disk(folder)
        require_one_of(there, texts, said)
        found.opening += not said
        found.acknowledged += sum(what == "is" for what, _ in said[1:])
        found.undecided += bool(said) and said[-1][0] == "to"
        texts = there


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that a forked child waits for no thread that it does not have
    logging.getLogger("memoir_fast").setLevel(logging.ERROR)  # of torn ends, which are what is looked for
    warnings.simplefilter("ignore")
    found = Found()
    with tempfile.TemporaryDirectory() as root:
        try:
            run(Path(root), options.kills, options.seed, found)
        except KeyboardInterrupt:
            pass  # what was counted so far is said
        except AssertionError as error:
            print(f"lost: {error}")
            return 1
    print(
        f"{found.kills} kills, {found.repairs} of them of repairs, {found.opening} while a folder was opened, "
        f"{found.undecided} within a change; {found.acknowledged} changes acknowledged in {found.folders} folders, "
        "none lost"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
