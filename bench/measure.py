"""Times functions in turns, hot and cold, on the CPU and on a CUDA device, and measures the machine's own ceilings.

Contenders of one comparison run in turns, A B A B, so that whatever disturbs the machine disturbs all of them; a ratio
is the median over turns of the ratio within a turn. A contender takes the number of an input set.

* hot: the same input set again and again, several calls per sample where one is short;
* cold: the last-level cache is overwritten before every call;
* graph hot, graph cold (CUDA): replays of a captured graph of calls over one input set, or over sets that together
  exceed the cache. What a graph cannot capture is timed without.
"""

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bandwidth import CEILING, Bandwidth, Mover, best, movers

from memoir_fast.cli import collect_env

Contenders = dict[str, Callable[[int], object]]
Samples = dict[str, list[float]]
Modes = dict[str, tuple[Samples, Bandwidth | None]]

ROOT = Path(__file__).resolve().parent.parent
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
PATIENCE = 2.5  # seconds after which the first contender's turns end, be they ever so few
_FALLBACK_CACHE = 32 << 20
_GRAPH_CALLS = 100


@dataclass(frozen=True)
class Spread:
    """Seconds of one call: percentiles over the samples, how many those were, and the shortest."""

    p20: float
    p50: float
    p80: float
    samples: int
    best: float


def spread(samples: list[float]) -> Spread:
    """Percentiles by the nearest sample."""
    ordered = sorted(samples)
    p20, p50, p80 = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.5, 0.8))
    return Spread(p20, p50, p80, len(ordered), ordered[0])


def ratio(samples: Samples, over: str, under: str) -> float:
    """Median over turns of `over`'s time divided by `under`'s: above 1 where `under` is faster."""
    return median(a / b for a, b in zip(samples[over], samples[under], strict=False))


def in_turns(sample: dict[str, Callable[[], float]], seconds: float) -> Samples:
    """Takes one sample of each contender per turn, for about `seconds` per contender and at least 5 turns.

    A contender that has used up twice its share sits out after its second sample, one that has used up eight times as
    much after its first. The first, the own one, never does; where it alone has taken `PATIENCE`, the turns end.
    """
    found: Samples = {name: [] for name in sample}
    started = time.perf_counter()
    spent, first = dict.fromkeys(sample, 0.0), next(iter(sample), "")
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() - started > seconds * len(sample):
            break
        if spent.get(first, 0.0) > PATIENCE:
            break
        for name, take in sample.items():
            if name != first and found[name] and spent[name] > seconds * (2 if len(found[name]) > 1 else 8):
                continue
            before = time.perf_counter()
            found[name].append(take())
            spent[name] += time.perf_counter() - before
    return found


class CpuTimer:
    """Wall-clock times on the CPU, in as many threads as torch is set to."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.cache_bytes = _cpu_cache_bytes()
        self._flush = torch.ones(max(4 * self.cache_bytes, 128 << 20) // 4)
        self._target = torch.empty_like(self._flush)

    def sets_for(self, _: int) -> int:
        """Input sets that a case shall draw: one, since the cache is flushed."""
        return 1

    def movers(self, kind: str, size: int) -> dict[str, Mover]:
        """What reads or copies `size` bytes; see `bandwidth.movers`."""
        return movers(kind, size, self._flush, self._target)

    @property
    def cold_bytes(self) -> int:
        """Bytes that a cold ceiling moves: several times the cache."""
        return self._flush.nbytes

    def modes(self, contenders: Contenders, sets: int, seconds: float, kind: str, size: int) -> Modes:
        """Samples of every contender, and the ceiling, by mode: cold moves far more than the cache, hot `size`."""
        cold = self._mode(self.cold, contenders, seconds, self.movers(kind, self.cold_bytes))
        quick = {name: run for name, run in contenders.items() if len(cold[0][name]) >= LEAST_ROUNDS}
        if next(iter(contenders)) not in quick:  # too slow for the cache to matter
            return {"cold": cold}
        return {"cold": cold, "hot": self._mode(self.hot, quick, seconds, self.movers(kind, size))}

    @staticmethod
    def _mode(
        take: Callable[[Contenders, float], Samples], contenders: Contenders, seconds: float, moving: dict[str, Mover]
    ) -> tuple[Samples, Bandwidth | None]:
        samples = take(contenders | {name: mover.run for name, mover in moving.items()}, seconds)
        return {name: samples[name] for name in contenders}, best(samples, moving)

    def cold(self, contenders: Contenders, seconds: float) -> Samples:
        """Seconds of single calls, each after the cache was overwritten."""

        def take(run: Callable[[int], object]) -> Callable[[], float]:
            def sample() -> float:
                self._target.fill_(1)
                start = time.perf_counter()
                run(0)
                return time.perf_counter() - start

            return sample

        return in_turns({name: take(run) for name, run in contenders.items()}, seconds)

    def hot(self, contenders: Contenders, seconds: float) -> Samples:
        """Seconds per call of calls in a row."""

        def take(run: Callable[[int], object]) -> Callable[[], float]:
            once = _once(run)
            count = calls_per_sample(once)

            def sample() -> float:
                for _ in range(count if once < 0.02 else 0):  # what the others left in the cache goes
                    run(0)
                start = time.perf_counter()
                for _ in range(count):
                    run(0)
                return (time.perf_counter() - start) / count

            return sample

        return in_turns({name: take(run) for name, run in contenders.items()}, seconds)

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Operations per second of a square matrix product, the best of several."""
        return _matrix_rate(self.device, dtype, 768, _once)


class CudaTimer:
    """Times by CUDA events, with and without a graph."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        words = max(4 * self.cache_bytes, 1 << 29) // 8
        self._source = torch.randint(1 << 62, (words,), device="cuda")
        self._target = torch.empty_like(self._source)

    def sets_for(self, size: int) -> int:
        """Input sets of `size` bytes that together exceed the cache three times, at most 1,024."""
        return max(1, min(1024, -(-3 * self.cache_bytes // max(size, 1))))

    def movers(self, kind: str, size: int) -> dict[str, Mover]:
        """A copy of far more than the cache, whatever is asked for: reading alone is not faster."""
        return {f"{CEILING}torch.Tensor.copy_": Mover(lambda _: self._target.copy_(self._source), 2 * self.cold_bytes)}

    @property
    def cold_bytes(self) -> int:
        """Bytes of the buffer that is copied."""
        return self._source.nbytes

    def modes(self, contenders: Contenders, sets: int, seconds: float, kind: str, size: int) -> Modes:
        """Samples of every contender, and the ceiling where it is one, by mode; a graph of what one can capture."""
        ceiling = self.movers(kind, size)
        cold = self.cold(contenders | {name: mover.run for name, mover in ceiling.items()}, seconds)
        bandwidth = best(cold, ceiling)
        found: Modes = {"cold": ({name: cold[name] for name in contenders}, bandwidth)}
        found["hot"] = self.hot(contenders, seconds), None
        found["graph cold"] = self._graphs(contenders, sets, seconds), bandwidth
        found["graph hot"] = self._graphs(contenders, 1, seconds), None
        return found

    def cold(self, contenders: Contenders, seconds: float) -> Samples:
        """Seconds of single calls, each after the cache was overwritten."""
        return self._events(contenders, seconds, cold=True)

    def hot(self, contenders: Contenders, seconds: float) -> Samples:
        """Seconds per call of calls in a row."""
        return self._events(contenders, seconds, cold=False)

    def _events(self, contenders: Contenders, seconds: float, cold: bool) -> Samples:
        def take(run: Callable[[int], object]) -> Callable[[], float]:
            count = 1 if cold else calls_per_sample(event_seconds(lambda: run(0)))

            def sample() -> float:
                if cold:
                    self._target.zero_()  # long enough that the host is ahead when the first event is reached
                return event_seconds(lambda: [run(0) for _ in range(count)]) / count

            return sample

        return in_turns({name: take(run) for name, run in contenders.items()}, seconds)

    def _graphs(self, contenders: Contenders, sets: int, seconds: float) -> Samples:
        samples: dict[str, Callable[[], float]] = {}
        for name, run in contenders.items():
            once = event_seconds(partial(run, 0))
            calls = max(sets, min(_GRAPH_CALLS, calls_per_sample(once, 5e-3)))
            try:
                graph = captured(run, sets, calls)
            except RuntimeError:  # it waits for the device, or allocates by data
                torch.cuda.synchronize()
                continue
            graph.replay()
            samples[name] = replayed(graph, calls)
        return in_turns(samples, seconds)

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Operations per second of a square matrix product, the best of several."""
        return _matrix_rate(self.device, dtype, 8192, lambda run: event_seconds(lambda: run(0)))


Timer = CpuTimer | CudaTimer


def calls_per_sample(seconds: float, wanted: float = 1e-3) -> int:
    """Calls of `seconds` each that together take about `wanted` seconds; 1 to 1,000."""
    return max(1, min(1000, round(wanted / max(seconds, 1e-9))))


def timer_for(device: str) -> Timer:
    """The timer of a device, `cpu` or `cuda`."""
    return CudaTimer() if device == "cuda" else CpuTimer()


def ceilings(timer: Timer) -> dict[str, Any]:
    """Bytes per second of reading and of copying, by which kernel, and operations per second of products, now."""
    found: dict[str, Any] = {}
    for kind in ("read", "copy"):
        moving = timer.movers(kind, timer.cold_bytes)
        bandwidth = best(timer.cold({name: mover.run for name, mover in moving.items()}, 0.2), moving)
        if bandwidth:
            found |= {f"{kind}_bytes_per_second": bandwidth.bytes_per_second, f"{kind}_kernel": bandwidth.kernel}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_operations_per_second"] = timer.matrix_rate(dtype)
    return found


def machine(timer: Timer) -> dict[str, Any]:
    """What the figures were measured on and with."""
    found = collect_env.collect()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _commit(),
        "device": timer.device.type,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "cache_bytes": timer.cache_bytes,
        "ceilings": ceilings(timer),
        "python": found["python"],
        "platform": platform.platform(),
        "packages": found["packages"],
        "processor": found["processor"],
        "extension": {name: value for name, value in found["extension"].items() if name != "file"},
        "gpu": found["gpu"],
        "driver": _driver() if timer.device.type == "cuda" else None,
    }


def event_seconds(run: Callable[[], object]) -> float:
    """Seconds between two CUDA events around `run`."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def replayed(graph: torch.cuda.CUDAGraph, calls: int) -> Callable[[], float]:
    """Seconds per call of a graph of `calls` calls, as a function that replays it once."""
    return lambda: event_seconds(graph.replay) / calls


def captured(run: Callable[[int], object], sets: int, calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls over `sets` input sets in turns. RuntimeError where a call cannot be captured.

    A call that waits for the device is not captured at all: a failed capture leaves its stream current and the random
    generator counting for it, and every later capture of the process fails. Where one fails all the same, both are put
    right. Whatever the calls read must live as long as the graph.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        run(0)  # what is compiled or looked up at the first call may wait
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for index in range(min(sets, 3)):
                run(index)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in range(calls):
                run(call % sets)
    except RuntimeError:
        torch.cuda.set_stream(before)
        torch.cuda.synchronize()
        empty = torch.cuda.CUDAGraph()  # a capture that succeeds gives the generator back
        with torch.cuda.graph(empty):
            pass
        raise
    return graph


def _once(run: Callable[[int], object]) -> float:
    run(0)
    start = time.perf_counter()
    run(0)
    return time.perf_counter() - start


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int, seconds: Callable) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / min(seconds(lambda _: torch.mm(a, b, out=out)) for _ in range(5))


def _cpu_cache_bytes() -> int:
    """The last-level cache that this processor says it has."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=_FALLBACK_CACHE)


def _output(*command: str) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def _commit() -> str | None:
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "memoir_fast", "kernels", "csrc")
    return f"{head}{'+changes' if changed else ''}" if head else None


def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader")
