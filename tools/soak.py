"""Uses one memory from many sides for minutes: nothing may grow, and no answer be wrong.

    python tools/soak.py --minutes 30

A tiny random model's memory, kept in a folder, is edited, deleted from, calibrated, compacted, saved and opened again
in turns, while threads generate with it and a second process loads the folder and tries to open it. Each period it
prints how large process and files are, and how long a pass of a generation had to wait for changes, in the part of the
pass that the memory is read in. Exit code 1: an answer is wrong, or something has grown beyond the bounds below.

`--slow-disk 0.05` makes each sync take so many seconds longer.
"""

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

from memoir_fast import RECIPES, Memoir, MemoirConfig  # noqa: E402
from memoir_fast.errors import LockedError  # noqa: E402
from memoir_fast.io.history import HISTORY_NAME  # noqa: E402

MORE_MEMORY = 96 << 20  # bytes over what the process takes after its first period
MORE_FILES = 2 << 20  # bytes over what the folder takes then
MORE_DESCRIPTORS = 8
UNRELATED = "In which country is the mountain?"
PROMPTS = [
    f"{start} {name} {end}"
    for start, end in (("The capital of", "is"), ("The colour of the", "was"), ("Who wrote about", "then?"))
    for name in ("France", "the play", "a camel", "Greek towns", "the river", "an old road", "Rome", "the sea")
]
TARGETS = ("Rome", "camel", "Greek")


class Wrong(Exception):
    """An answer is not what it must be."""


def bytes_of(folder: Path) -> int:
    """What a folder takes, but for its history, which grows by a line with each change."""
    with contextlib.suppress(FileNotFoundError):  # a file of an earlier snapshot
        return sum(path.stat().st_size for path in folder.iterdir() if path.name != HISTORY_NAME)
    return bytes_of(folder)


class Soak:
    """One memory, what it holds, and what was seen of it."""

    def __init__(self, folder: Path, threads: int, seed: int) -> None:
        conftest = importlib.import_module("conftest")
        self.model, self.tokenizer = conftest.make_tiny_llama(), conftest.make_tiny_tokenizer()
        self.folder, self.draw = folder, random.Random(seed)
        self.plain = self.generate(UNRELATED)
        recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=2)
        config = MemoirConfig(recipe=recipe, tau=0.9, k=16, background=8, page_edits=6, routing="paper", check=False)
        self.memoir = Memoir.open(self.model, self.tokenizer, folder, config)
        self.prompts = self._told_apart()
        self.changes = dict.fromkeys(self.prompts, 0)
        """By prompt, how often its edit has begun or ended to change: odd while it does."""
        self.locks = [threading.Lock() for _ in range(threads)]
        self.done, self.generations, self.operations = threading.Event(), 0, 0
        self.wait, self.slowest, self.error = 0.0, 0.0, ""
        self._time_waits()

    def _told_apart(self) -> list[str]:
        """Prompts of which no two have one mask, as two of a tiny model may: the earlier edit answers both then."""
        first: dict[tuple[int, ...], str] = {}
        for prompt in PROMPTS:
            first.setdefault(tuple(self.memoir.hash(prompt)[0].tolist()), prompt)
        return list(first.values())

    def generate(self, prompt: str) -> list[int]:
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        return self.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0].tolist()

    def _time_waits(self) -> None:
        """Notes the longest time that a pass waited for its turn to read."""
        turns = self.memoir.layer.turns
        enter = turns.enter

        def timed() -> None:
            start = time.perf_counter()
            enter()
            self.wait = max(self.wait, time.perf_counter() - start)

        turns.enter = timed  # type: ignore[method-assign]

    @contextlib.contextmanager
    def changing(self, *prompts: str) -> Iterator[None]:
        for prompt in prompts:
            self.changes[prompt] += 1
        yield
        for prompt in prompts:
            self.changes[prompt] += 1

    def go_on(self, number: int) -> None:
        """One thread's part: generates, and compares routes with what there is."""
        draw = random.Random(number)
        try:
            while not self.done.is_set():
                with self.locks[number]:
                    start = time.perf_counter()
                    self._look(draw.choice([*self.prompts, UNRELATED]))
                    self.slowest = max(self.slowest, time.perf_counter() - start)
                    self.generations += 1
                time.sleep(0.001)
        except BaseException:
            self.error = traceback.format_exc()

    def _look(self, prompt: str) -> None:
        before, own = self.changes.get(prompt, 0), self.memoir.edits.id_of(prompt)
        answer = self.generate(prompt)
        route = self.memoir.last_routes[0].edit_id
        if before % 2 or self.changes.get(prompt, 0) != before:
            return  # changed meanwhile
        if own is not None and route != own:
            raise Wrong(f"{prompt!r} followed {route}, its edit is {own}")
        if prompt == UNRELATED and route == -1 and answer != self.plain:
            raise Wrong(f"{prompt!r} follows no edit, and says {answer}, where it said {self.plain}")

    def operate(self) -> None:
        """One operation, in turns."""
        turn, memoir = self.operations, self.memoir
        self.operations += 1
        if turn % 40 == 39:
            self._open_again()
        elif turn % 20 == 19:
            memoir.save_pretrained(self.folder)
        elif turn % 50 == 28:
            with self.changing(*self.prompts):
                memoir.compact(progress=False)
        elif turn % 25 == 7 and memoir.edits:
            memoir.calibrate(["What is it?", UNRELATED] * 10, 0.4)
        elif turn % 4 == 3 and memoir.edits:
            edit_id, edit = self.draw.choice(list(memoir.edits.items()))
            with self.changing(edit.prompt):
                memoir.delete(edit_id)
        else:
            prompts = self.draw.sample(self.prompts, self.draw.choice((1, 1, 3)))
            with self.changing(*prompts):
                memoir.edit([(prompt, self.draw.choice(TARGETS)) for prompt in prompts], batch=3, progress=False)

    def _open_again(self) -> None:
        """Closes the folder and opens it: the same edits, the same answers, to the last bit."""
        with contextlib.ExitStack() as stack:
            for lock in self.locks:
                stack.enter_context(lock)
            edits, before = dict(self.memoir.edits), [self.generate(prompt) for prompt in self.prompts]
            self.memoir.detach()
            self.memoir = Memoir.open(self.model, self.tokenizer, self.folder)
            self._time_waits()
            if dict(self.memoir.edits) != edits or [self.generate(prompt) for prompt in self.prompts] != before:
                raise Wrong("opened again, the memory holds or says something else")


def load_for_ever(model: Any, tokenizer: Any, folder: Path, say: int) -> None:
    """The second process's part: loads what there is, looks at it, and may not open it."""
    while True:
        start = time.perf_counter()
        memoir = Memoir.from_pretrained(model, tokenizer, folder, check=False)
        seconds = time.perf_counter() - start
        try:
            for edit_id, edit in memoir.edits.items():
                model(tokenizer(edit.prompt, return_tensors="pt").input_ids)
                if memoir.last_routes[0].edit_id != edit_id:
                    raise Wrong(f"loaded beside the writer, {edit.prompt!r} ({edit_id}): {memoir.last_routes[0]}")
        finally:
            memoir.detach()
        if not _is_refused(model, tokenizer, folder):
            raise Wrong("a second process has opened the folder")
        os.write(say, json.dumps(seconds).encode() + b"\n")


def _is_refused(model: Any, tokenizer: Any, folder: Path) -> bool:
    """False where a folder that a process keeps open can be opened by another; it may be free for a moment."""
    try:
        Memoir.open(model, tokenizer, folder).detach()
    except LockedError:
        return True
    return False


class Second:
    """The second process, forked before there are threads."""

    def __init__(self, soak: Soak) -> None:
        hear, say = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(hear)
                load_for_ever(soak.memoir.detach(), soak.tokenizer, soak.folder, say)
            except BaseException:
                os.write(say, b"failed\n" + traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(say)
        os.set_blocking(hear, False)
        self._hear, self.loads, self._said = hear, 0, b""

    def heard(self) -> float:
        """Seconds of its longest load since this was asked last; Wrong where it failed."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._hear, 1 << 16):
                self._said += piece
        if b"failed\n" in self._said:
            raise Wrong(self._said.partition(b"failed\n")[2].decode())
        *lines, self._said = self._said.split(b"\n")
        self.loads += len(lines)
        return max(map(float, lines), default=0.0)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._hear)


@dataclasses.dataclass
class Size:
    """What a process and its files take."""

    memory: int
    files: int
    descriptors: int

    @classmethod
    def now(cls, folder: Path) -> "Size":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), bytes_of(folder), len(os.listdir("/proc/self/fd")))

    def grown_beyond(self, first: "Size") -> list[str]:
        """What is larger than the bounds allow."""
        bounds = {"memory": MORE_MEMORY, "files": MORE_FILES, "descriptors": MORE_DESCRIPTORS}
        return [
            f"{name} grew from {getattr(first, name):,} to {getattr(self, name):,}, {most:,} more are allowed"
            for name, most in bounds.items()
            if getattr(self, name) > getattr(first, name) + most
        ]


def run(soak: Soak, seconds: float, period: float) -> None:
    """Goes on for so long. Wrong where an answer is, or something grows beyond its bounds."""
    second = Second(soak)
    threads = [threading.Thread(target=soak.go_on, args=(number,), daemon=True) for number in range(len(soak.locks))]
    try:
        for thread in threads:
            thread.start()
        begun, first = time.monotonic(), None
        for number in itertools.count(1):
            while time.monotonic() < min(begun + number * period, begun + seconds):
                soak.operate()
                if soak.error:
                    raise Wrong(soak.error)
            size, longest = Size.now(soak.folder), second.heard()
            print(
                f"{time.monotonic() - begun:6.0f} s: {soak.operations} operations, {soak.generations} generations, "
                f"{second.loads} loads beside; {size.memory / 2**20:.0f} MiB, files {size.files / 1000:.0f} kB, "
                f"{size.descriptors} descriptors; longest: {1000 * soak.wait:.1f} ms wait, "
                f"{soak.slowest:.3f} s generation, {longest:.3f} s load",
                flush=True,
            )
            soak.wait = soak.slowest = 0.0
            first = first or size
            if grown := size.grown_beyond(first):
                raise Wrong("; ".join(grown))
            if time.monotonic() >= begun + seconds:
                return
    finally:
        soak.done.set()
        for thread in threads:
            thread.join()
        second.end()


def _sync_slowly(seconds: float, sync: Callable[[int], None], descriptor: int) -> None:
    time.sleep(seconds)
    sync(descriptor)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 where all was as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--period", type=float, default=60, help="seconds between two lines")
    parser.add_argument("--threads", type=int, default=2, help="that generate")
    parser.add_argument("--slow-disk", type=float, default=0, help="seconds that each sync takes longer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that a forked child waits for no thread that it does not have
    logging.getLogger("memoir_fast").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if options.slow_disk:
        os.fsync = partial(_sync_slowly, options.slow_disk, os.fsync)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder) / "memory", options.threads, options.seed)
        try:
            run(soak, 60 * options.minutes, options.period)
        except Wrong as error:
            print(f"wrong: {error}")
            return 1
        finally:
            soak.memoir.detach()
    print("no answer was wrong, nothing has grown beyond its bounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
