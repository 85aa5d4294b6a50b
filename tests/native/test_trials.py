"""Which way of several is taken on this machine: found out by the first calls of a process, all with one result."""

import json
import os
import subprocess
import sys

import pytest
import torch

from memoir_fast.reference.mask_match import mask_match

CACHE, MEMORY = (f"search for one query in {where}" for where in ("a cache", "memory"))
PROGRAM = """
import json, torch
from memoir_fast import native, ops

def search(rows):
    store, least = torch.ones(rows, 448, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    ops.mask_match(store[:1], store, torch.tensor(rows, dtype=torch.int32), least)

def multiply(tokens, memory=torch.ones(512, 512), columns=torch.arange(256, dtype=torch.int32)[None]):
    ops.masked_linear(torch.ones(1, tokens, 512), memory, columns, torch.zeros(1, dtype=torch.int32))

for call, argument, times in {calls}:
    for _ in range(times):
        {{"search": search, "multiply": multiply, "threads": torch.set_num_threads}}[call](argument)
    print(json.dumps(native.extension().cpu_trials()))
"""


def trials(*calls: tuple[str, int, int], **environment: str) -> list[dict]:
    """What is known after each group of calls in a new process: trials last as long as a process."""
    environment = {**os.environ, "MEMOIR_FAST_BACKEND": "cpu", **environment}
    program = [sys.executable, "-c", PROGRAM.format(calls=calls)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_quickest_is_taken_once_each_had_its_turns(extension):
    wide = extension.cpu_features()["avx2"]
    ways = {True: 6, False: 2}[extension.cpu_features()["avx512"]] if wide else 3
    small, once, cached, both, one_token, tokens = trials(
        ("search", 500, 1),  # .9 MB: too small to be timed, as an import is
        ("search", 600, 1),
        ("search", 600, 150),
        ("search", 10_000, 50),
        ("multiply", 1, 80),
        ("multiply", 5, 80),
    )
    assert small == {}
    assert once.keys() == {CACHE} and len(once[CACHE]["reached"]) == ways and once[CACHE]["taken"] == ""
    assert cached[CACHE]["taken"] and both.keys() == {CACHE, MEMORY} and both[CACHE] == cached[CACHE]
    products = [f"product with an edit's rows, float32, {number}" for number in ("one token", "more tokens")]
    products = products if ways == 6 else []  # else there is nothing to choose among
    assert one_token.keys() == {CACHE, MEMORY, *products[:1]}
    assert tokens.keys() == {CACHE, MEMORY, *products}
    for trial in tokens.values():
        assert all(trial["reached"].values())
        assert trial["taken"] == max(trial["reached"], key=trial["reached"].__getitem__)


def test_a_forced_path_chooses_among_its_own(extension):
    (found,) = trials(("search", 600, 100), MEMOIR_FAST_CPU="portable")
    assert found.keys() == {f"{CACHE}, portable alone"}
    (trial,) = found.values()
    assert len(trial["reached"]) == 3 and all(way.startswith("portable ") for way in trial["reached"])
    assert trial["taken"] in trial["reached"]


def test_it_is_found_out_where_many_threads_share_a_small_store(extension):
    """Of 1.1 MB each of four has less than one piece that a single thread would be timed by."""
    _, found = trials(("threads", 4, 1), ("search", 600, 150))
    assert found.keys() == {CACHE} and found[CACHE]["taken"]


@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_whose_turn_it_is(raw):
    """Pieces of one search go different ways, and other ways in the next; the last row of all is the best of two."""
    store = torch.randint(-(1 << 31), (1 << 31) - 1, (3_001, 448), dtype=torch.int32)
    store[2_999] = store[3_000]
    query, count = store[3_000:], torch.tensor(3_001, dtype=torch.int32)
    least = torch.randint(2_000, 9_000, (3_001,), dtype=torch.int32)
    expected = mask_match(query, store, count, least)
    for _ in range(20):
        assert all(map(torch.equal, raw.mask_match(query, store, count, least), expected))


def test_a_child_that_is_forked_amid_trials_does_not_hang(emulated):
    assert emulated("forks").children_that_hang(100) == 0


FORKED = """
import os, signal, torch
from memoir_fast import ops

torch.set_num_threads(2)
store, least = torch.ones(3000, 448, dtype=torch.int32), torch.ones(3000, dtype=torch.int32)
memory, columns = torch.ones(512, 4096), torch.arange(256, dtype=torch.int32)[None]

def work():
    ops.mask_match(store[:1], store, torch.tensor(3000, dtype=torch.int32), least)
    ops.masked_linear(torch.ones(1, 4, 512), memory, columns, torch.zeros(1, dtype=torch.int32))

work()
child = os.fork()
if not child:
    signal.alarm(20)
    work()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("extension")
def test_a_child_that_is_forked_behind_threads_at_work_does_not_hang():
    """Torch's own operations do: OpenMP's threads do not come along."""
    environment = {**os.environ, "MEMOIR_FAST_BACKEND": "cpu"}
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, env=environment)
    assert done.stdout == "0\n", done.stderr
