"""A small memory, a folder that it was saved to, and an empty journal."""

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.io.journal import Journal
from memoir_fast.io.writer_lock import WriterLock

PROMPTS = ("The capital of France is", "Who wrote the play?", "Which animal lives in the desert?")


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    """Three edits, of which number 1 is deleted."""
    recipe = dataclasses.replace(RECIPES["paper"], steps=3, prefixes=1)
    memoir = Memoir.attach(
        tiny_llama, tiny_tokenizer, MemoirConfig(k=12, tau=0.75, background=8, recipe=recipe, routing="paper")
    )
    memoir.edit([(prompt, "Rome") for prompt in PROMPTS], progress=False)
    memoir.delete(1)
    return memoir


@pytest.fixture
def saved(memoir, tmp_path):
    """A folder that `memoir` was saved to."""
    memoir.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


@pytest.fixture
def lock(tmp_path):
    with WriterLock(tmp_path) as held:
        yield held


@pytest.fixture
def journal(lock):
    """Of the snapshot whose settings have the checksum sha256(b"a snapshot")."""
    with Journal(lock, hashlib.sha256(b"a snapshot").hexdigest()) as opened:
        yield opened


@pytest.fixture
def dies_after():
    """A function (calls, act) -> exit code of a process that does `act`.

    It ends with code 9, without any clean-up, before the sync, move or removal that comes after so many of them.
    """
    return _dies_after


def _dies_after(calls, act):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [calls]

    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    try:
        os.fsync, os.replace, Path.unlink = dying(os.fsync), dying(os.replace), dying(Path.unlink)
        act()
        os._exit(0)
    finally:
        os._exit(1)
