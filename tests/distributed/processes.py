"""Runs checks on several processes of gloo: `python processes.py CHECKS FOLDER SIZE...`.

Checks are the functions `check_*` of a file, in their order; `check_on_two_*` run on two processes alone. Processes are
forked once all is imported, SIZE of them at a time. What a check raises is written to `FOLDER/failed-SIZE-RANK.json`.
"""

import importlib.util
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 60  # that a process waits for another before it gives up


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(rank, size, checks, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    wait = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{folder}/met-{size}", rank=rank, world_size=size, timeout=wait)
    failed = {}
    for name, check in vars(checks).items():
        if name.startswith("check_") and (size == 2 or not name.startswith("check_on_two_")):
            try:
                check(folder)
            except Exception:
                failed[name] = traceback.format_exc()
            others = [None] * size  # a process that failed would let the others wait in the next check
            dist.all_gather_object(others, name in failed)
            if any(others):
                break
    (Path(folder) / f"failed-{size}-{rank}.json").write_text(json.dumps(failed))
    dist.destroy_process_group()


if __name__ == "__main__":
    checks, folder = load(sys.argv[1]), sys.argv[2]
    for size in map(int, sys.argv[3:]):
        mp.start_processes(run, (size, checks, folder), nprocs=size, start_method="fork")
