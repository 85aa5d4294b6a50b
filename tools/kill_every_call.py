"""Kills a process at each of its writes, syncs, moves and removals, for each change of a memory that was opened.

    python tools/kill_every_call.py
    python tools/kill_every_call.py --every 9 --only merge,save
    python tools/kill_every_call.py --full

A dry run counts the calls by which a change reaches the disk. Then, for each of them, a child opens a copy of one
folder, begins the change and is killed by SIGKILL before the call, or in the middle of what it writes. What is opened
afterwards must be whole, and what it was before the change or behind a step of it, to the bit; and no file may stay
that belongs to nothing. `tools/kill_memory.py` kills by the clock, between calls too.

With `--full`, the disk is full from that call on instead, midway in the middle of what is written, and has room again
behind the change: what the process then says of its memory must be what the folder says, also behind one more edit,
which may be refused. Exit code 1: something is lost, wrong or left over.
"""

import argparse
import copy
import dataclasses
import errno
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig  # noqa: E402
from memoir_fast.errors import CheckpointError  # noqa: E402
from memoir_fast.io import checkpoint, codes, durable, repair  # noqa: E402
from memoir_fast.io.journal import journal_path  # noqa: E402

CALLS = ("write", "fsync", "replace", "ftruncate", "unlink", "mkdir", "pwrite")
GROWING = ("write", "fsync", "mkdir", "pwrite")  # those that need room
NOW = 1.7e9  # the time that it is in every child: what is written is then the same each time
FACTS = [(f"The number {number} is", ["Rome", "camel", "Greek"][number % 3]) for number in range(7)]
_KEPT_NAMES = re.compile(r"memory_config\.json|writer\.lock|history\.jsonl")

Change = Callable[[Memoir, Path], Any]
CHANGES: dict[str, Change] = {
    "edit": lambda memoir, _: memoir.edit("What is new?", "camel"),
    "edit several": lambda memoir, _: memoir.edit([("What?", "Rome"), FACTS[4]], progress=False),
    "edit again": lambda memoir, _: memoir.edit(FACTS[0][0], "Bob"),
    "delete": lambda memoir, _: memoir.delete(0),
    "delete a bank": lambda memoir, _: memoir.delete_bank("acme"),
    "calibrate": lambda memoir, _: memoir.calibrate(["What is it?", "Where is the mountain?"] * 10, 0.4),
    "undo": lambda memoir, _: memoir.undo(2),
    "save": lambda memoir, folder: memoir.save_pretrained(folder),
    "renew": lambda memoir, _: _renew(memoir),
    "merge": lambda memoir, folder: memoir.merge(folder.with_name("theirs")),
    "refresh": lambda memoir, _: _refresh(memoir),
    "compact": lambda memoir, _: memoir.compact(progress=False),
    "open": lambda memoir, folder: None,
}


def _renew(memoir: Memoir) -> None:
    """An edit behind which the journal has outgrown its snapshot."""
    durable._LEAST_SNAPSHOT = 0
    assert memoir._durable is not None
    memoir._durable._snapshot_bytes = 0
    memoir.edit("What is new?", "camel")


def _refresh(memoir: Memoir) -> None:
    memoir.faded = lambda *_, **__: [0, 2]  # type: ignore[method-assign]
    memoir.refresh(turns=1, progress=False)


def digest(memoir: Memoir) -> str:
    """All that a memory answers by, however its files are divided up."""
    layer, found = memoir.layer, hashlib.sha256()
    found.update(repr((sorted(memoir.edits.items()), memoir.tau, memoir.calibration)).encode())
    store, live = layer.store, torch.tensor(layer.store.live, dtype=torch.int32)
    tensors = {"masks": store.masks[live], "least": store.min_overlap[live], "tokens": store.target_tokens[live]}
    tensors |= {"rows": layer.memory.weight[store.rows(live).long()], **codes.tensors(layer)}
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


class Calls:
    """Counts a process's calls to the disk, and kills it at one of them.

    Args:
        kill_at (int): the number of that call, from 1 on; 0: none.
        midway (bool): half of what a write is given is written before the kill, and half of a file that is synced.
        full (bool): in place of the kill, there is no room on the disk from this call on, until `ended`.
    """

    def __init__(self, kill_at: int, midway: bool, full: bool = False) -> None:
        self.count, self._kill_at, self._midway, self._full = 0, kill_at, midway, full
        self.ended = False
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        cut, write = os.ftruncate, os.write

        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self._full:
                if self.ended or not 0 < self._kill_at <= self.count or name not in GROWING:
                    return call(*args, **options)
                if self._midway and self.count == self._kill_at and name == "write":
                    return write(args[0], bytes(args[1])[: (len(args[1]) + 1) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.count == self._kill_at:
                if self._midway and name == "write":
                    write(args[0], bytes(args[1])[: len(args[1]) // 2])
                elif self._midway and name == "fsync" and os.readlink(f"/proc/self/fd/{args[0]}").endswith(".tmp"):
                    cut(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted


def child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked process; None where that was killed."""
    hear, say = os.pipe()
    write = os.write
    number = os.fork()
    if not number:
        try:
            os.close(hear)
            time.time = lambda: NOW  # type: ignore[assignment]
            write(say, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            write(say, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(say)
    with open(hear, "rb") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if code == -signal.SIGKILL:
        return None
    if code:
        raise AssertionError(said.decode())
    return json.loads(said)


class Killer:
    """Kills changes of one memory.

    Args:
        root (Path): an empty folder.
        routing (str): "early" or "paper".
    """

    def __init__(self, root: Path, routing: str = "early") -> None:
        conftest = importlib.import_module("conftest")
        self._model, self._tokenizer = conftest.make_tiny_llama(), conftest.make_tiny_tokenizer()
        self._plain = conftest.make_tiny_llama()
        recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
        config = MemoirConfig(recipe=recipe, tau=0.9, k=16, background=8, page_edits=2, routing=routing, check=False)
        self.folder, self._template = root / "work" / "memory", root / "template"
        child(lambda: self._make(config))

    def _make(self, config: MemoirConfig) -> None:
        with Memoir.open(self._model, self._tokenizer, self._template / "theirs", config) as memoir:
            memoir.edit([FACTS[0], *FACTS[5:]], progress=False)
            memoir.save_pretrained(self._template / "theirs")
        memoir.detach()
        with self._open(self._template / "memory", config) as memoir:
            memoir.edit([*FACTS[:3], Edit(*FACTS[3], bank="acme"), Edit(*FACTS[4], bank="acme")], progress=False)
            memoir.save_pretrained(self._template / "memory")
            memoir.delete(1)
            memoir.edit(FACTS[2][0], "Bob")

    def _open(self, folder: Path, config: MemoirConfig | None = None) -> Memoir:
        return Memoir.open(self._model, self._tokenizer, folder, config)

    def _change(self, change: str, kill_at: int = 0, midway: bool = False) -> tuple[int, list[str]]:
        """The calls that a change took, and what the memory was before, behind each of its edits, and behind it."""
        if change == "open":
            calls = Calls(kill_at, midway)
            memoir = self._open(self.folder)
            return calls.count, [digest(memoir)]
        memoir = self._open(self.folder)
        calls, steps = Calls(kill_at, midway), [digest(memoir)]
        if not kill_at:
            finish = memoir._finish

            def noted(last: Any) -> Any:
                steps.append(digest(memoir))
                return finish(last)

            memoir._finish = noted  # type: ignore[method-assign]
        CHANGES[change](memoir, self.folder)
        return calls.count, [*steps, digest(memoir)]

    def _change_when_full(self, change: str, full_at: int, midway: bool) -> tuple[list[str], list[str]]:
        """What the memory may be behind a change on a full disk, and behind one more edit, by the process itself."""
        if change == "open":
            calls = Calls(full_at, midway, full=True)
            with suppress(CheckpointError):
                self._open(self.folder).detach()
            calls.ended = True
            memoir = self._open(self.folder)
        else:
            memoir = self._open(self.folder)
            calls = Calls(full_at, midway, full=True)
            with suppress(CheckpointError):
                CHANGES[change](memoir, self.folder)
            calls.ended = True
        behind = digest(memoir)
        with self._beside() as other:
            if digest(other) != behind:
                raise AssertionError("the folder is not what the process says")
        with suppress(CheckpointError):
            memoir.edit("And now?", "Rome")
        last = digest(memoir)
        with self._beside() as other:
            if digest(other) != last:
                raise AssertionError("the folder is not what the process says behind one more edit")
        return [behind], [last]

    @contextmanager
    def _beside(self) -> Iterator[Memoir]:
        """The memory of the folder, on a model of its own."""
        other = Memoir.from_pretrained(copy.deepcopy(self._plain), self._tokenizer, self.folder, check=False)
        yield other
        other.detach()

    def _reopened(self) -> tuple[str, str, list[str]]:
        """What is there after a kill, what it is behind one more edit, and names of files that belong to nothing."""
        found = repair.survey(self.folder)
        if found.damage:
            raise AssertionError(f"damaged: {found.damage}")
        with self._open(self.folder) as memoir:
            if dict(memoir.edits) != found.kept:
                raise AssertionError(f"two ways of reading differ: {dict(memoir.edits)}, {found.kept}")
            there = digest(memoir)
            left = [name for name in os.listdir(self.folder) if checkpoint.LEFTOVERS.fullmatch(name)]
            memoir.edit("And now?", "Rome")
            behind = digest(memoir)
        memoir.detach()
        with self._open(self.folder) as memoir:
            if digest(memoir) != behind:
                raise AssertionError("what was taught behind the kill is not what is opened")
            memoir.save_pretrained(self.folder)
            saved = checkpoint.read(self.folder)
            known = {*saved.sizes, journal_path(self.folder, saved.checksum).name}
            left += [one for one in os.listdir(self.folder) if one not in known and not _KEPT_NAMES.fullmatch(one)]
        return there, behind, left

    def fresh(self) -> None:
        """Puts the folder back to what it was."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        shutil.copytree(self._template, self.folder.parent)

    def kill(self, change: str, every: int = 1, full: bool = False) -> tuple[int, int]:
        """(kills, those behind which the change was there); AssertionError where something is wrong."""
        self.fresh()
        calls, steps = child(lambda: self._change(change))
        made = kills = 0
        for number in range(1, calls + 1):
            for midway in (False, True):
                kills += 1
                if kills % every:
                    continue
                self.fresh()
                what = "full" if full else "killed"
                where = f"{change}, {what} at call {number} of {calls}{', midway' if midway else ''}"
                if full:
                    try:
                        behind, _ = child(lambda: self._change_when_full(change, number, midway))  # noqa: B023
                    except AssertionError as error:
                        raise AssertionError(f"{where}: {error}") from error
                    if behind[0] not in steps:
                        raise AssertionError(f"{where}: it is neither as before nor as behind a step")
                    made += behind[0] == steps[-1]
                    continue
                if child(lambda: self._change(change, number, midway)) is not None:  # noqa: B023
                    raise AssertionError(f"{where}: it was not killed")
                try:
                    there, _, left = child(self._reopened)
                except AssertionError as error:
                    raise AssertionError(f"{where}: {error}") from error
                if there not in steps:
                    raise AssertionError(f"{where}: it is neither as before nor as behind a step")
                if left:
                    raise AssertionError(f"{where}: {left} are left over")
                made += there == steps[-1]
        return kills // every, made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="Kill at every so manieth place alone.")
    parser.add_argument("--only", default=",".join(CHANGES), help="The changes, by commas.")
    parser.add_argument("--full", action="store_true", help="A full disk in place of kills.")
    parser.add_argument("--routing", default="early", choices=("early", "paper"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that a forked child waits for no thread that it does not have
    logging.getLogger("memoir_fast").setLevel(logging.ERROR)  # of torn ends, which are what is looked for
    warnings.simplefilter("ignore")
    every = 0
    with tempfile.TemporaryDirectory() as root:
        killer = Killer(Path(root), options.routing)
        for change in options.only.split(","):
            try:
                kills, made = killer.kill(change, options.every, options.full)
            except AssertionError as error:
                print(f"lost: {error}")
                return 1
            print(f"{change}: {kills} times, {made} of them behind it", flush=True)
            every += kills
    print(f"{every} times, nothing lost, nothing left over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
