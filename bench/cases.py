"""A benchmark case: what is run, on which inputs, beside which peers, and the row of figures that comes of it.

The result is compared with the reference before anything is timed; where it is wrong there is no time.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import measure
import torch
from bandwidth import share

from memoir_fast import backends, native

OWN = "memoir_fast"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Absent(NamedTuple):
    """A peer that cannot run, and why."""

    reason: str


class Peer(NamedTuple):
    """A contender: takes the inputs of the case; `same` tells whether it computes the same thing, which is checked."""

    run: Callable[..., Any]
    same: bool = True


SLOW = Absent("seconds per call at this size")
ON_CPU_ONLY = Absent("runs on the CPU")


class Wrong(Exception):
    """A result that is not the reference's."""


@dataclass(frozen=True)
class Settings:
    """What a run is asked for."""

    device: str = "cpu"
    quick: bool = False
    compile: bool = True
    peers: bool = True
    seconds: float = 0.25
    """Per contender and mode."""


def compiled(function: Callable[..., Any], settings: Settings, same: bool = True) -> Peer | Absent:
    """`function` through torch.compile."""
    if not settings.compile:
        return Absent("torch.compile is left out of a quick run")
    torch._dynamo.reset()
    return Peer(torch.compile(function, dynamic=False), same)


@dataclass
class Prepared:
    """A case with its tensors made."""

    run: Callable[..., Any]
    draw: Callable[[], tuple]
    """A fresh input set, the arguments of `run`."""
    check: Callable[[tuple, Any], None]
    """Raises `Wrong` where a result for an input set is not the reference's."""
    bytes: int
    operations: int = 0
    peers: dict[str, Peer | Absent] = field(default_factory=dict)
    ceiling: str = "copy"
    """What the bytes are compared with: `read` or `copy`."""
    op: str | None = None
    """The op whose backend is noted; the case's bench where None."""
    dtype: torch.dtype = torch.float32
    """Of the matrix products that the operations are compared with."""


@dataclass(frozen=True)
class Case:
    """One row: `parameters` are its numbers (D, O, k, N, B, S, dtype ...)."""

    bench: str
    name: str
    parameters: dict[str, Any]
    make: Callable[[Settings], Prepared]
    needs_bytes: int = 0
    """Memory that it takes; where there is less, the row says so."""

    def __str__(self) -> str:
        return f"{self.bench}: {self.name}"


def rows_of(cases: Iterable[Case], settings: Settings, timer: measure.Timer) -> Iterator[dict[str, Any]]:
    """A row for each case; one that fails says why and does not stop the others."""
    for case in cases:
        try:
            yield row_of(case, settings, timer)
        except Exception as error:  # a driver of many cases: one that breaks becomes a failed row
            yield blank(case, failed=f"{type(error).__name__}: {error}"[:300])
        gc.collect()


def blank(case: Case, **outcome: Any) -> dict[str, Any]:
    """A row without figures."""
    return {"bench": case.bench, "case": case.name, "parameters": case.parameters, **outcome}


def row_of(case: Case, settings: Settings, timer: measure.Timer) -> dict[str, Any]:
    """Checks, then times a case and its peers."""
    free = free_bytes(timer.device)
    if case.needs_bytes > 0.9 * free:
        return blank(case, absent=f"needs {case.needs_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    prepared = case.make(settings)
    sets = [prepared.draw()]
    try:
        check(prepared, sets[0])
    except Wrong as error:
        return blank(case, failed=str(error))
    backend = backends.last_used().get(prepared.op or case.bench)
    sets += [prepared.draw() for _ in range(timer.sets_for(prepared.bytes) - 1)]
    peers = {name: _usable(peer, prepared, sets[0]) for name, peer in prepared.peers.items()}
    runs = {OWN: prepared.run} | {name: peer.run for name, peer in peers.items() if isinstance(peer, Peer)}
    contenders: measure.Contenders = {name: _on_set(run, sets) for name, run in runs.items()}
    modes = timer.modes(contenders, len(sets), settings.seconds, prepared.ceiling, prepared.bytes)
    headline = "graph cold" if OWN in modes.get("graph cold", ({},))[0] else "cold"
    figures = _figures(modes, headline, prepared, timer)
    return blank(
        case,
        backend=backend,
        ways=_ways() if backend == "cpu" else {},
        headline=headline,
        input_sets=len(sets),
        **figures,
        peers={
            name: _peer_row(name, peer, modes, headline) if isinstance(peer, Peer) else {"absent": peer.reason}
            for name, peer in peers.items()
        },
    )


def _ways() -> dict[str, str]:
    """What the CPU's kernels chose among so far in this process: what it is about, and the way that serves."""
    return {what: trial["taken"] for what, trial in native.extension().cpu_trials().items() if trial["taken"]}


def _on_set(run: Callable[..., Any], sets: list[tuple]) -> Callable[[int], Any]:
    return lambda index: run(*sets[index])


def check(prepared: Prepared, inputs: tuple) -> None:
    """Runs the case once over poisoned memory and compares; raises `Wrong`."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    try:
        result = prepared.run(*inputs)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    prepared.check(inputs, result)


def most_rows(device: str) -> int:
    """How many rows of a result are compared with a slow reference: all on a GPU, a second's worth on a CPU."""
    return 1 << 30 if device == "cuda" else 128


def rotated(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that a kernel shall find outside of the cache: a copy per input set on a GPU, which rotates the sets."""
    return tensor.clone() if tensor.is_cuda else tensor


def some_rows(count: int, most: int, device: str) -> torch.Tensor:
    """Row numbers that a check looks at: all, or where they are more than `most` the first, the last and some drawn."""
    if count <= most:
        return torch.arange(count, device=device)
    drawn = torch.randperm(count - 2, device=device)[: most - 2] + 1
    return torch.cat([drawn.new_tensor([0, count - 1]), drawn]).sort().values


def require_close(result: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Raises `Wrong` where the relative distance to `expected`, in float64, is above the dtype's tolerance or NaN."""
    limit = TOLERANCE[result.dtype]
    result, expected = result.double(), expected.double()
    if result.shape != expected.shape:
        raise Wrong(f"{what}: the shape is {list(result.shape)}, that of the reference {list(expected.shape)}")
    error = float((result - expected).norm() / expected.norm().clamp(min=1e-30))
    if not error <= limit:
        raise Wrong(f"{what}: the relative error is {error:.1e}, allowed is {limit:.0e}")


def require_equal(result: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Raises `Wrong` where any element differs."""
    if result.shape != expected.shape or not torch.equal(result.cpu(), expected.cpu().to(result.dtype)):
        raise Wrong(f"{what}: differs from the reference")


def benchmarked(benchmark: Any, case: Case, settings: Settings) -> None:
    """The body of a pytest-benchmark case: checks, then lets the plugin time the op, device waits included."""
    prepared = case.make(settings)
    inputs = prepared.draw()
    check(prepared, inputs)

    def synchronised() -> None:
        prepared.run(*inputs)
        if settings.device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=5, iterations=1, warmup_rounds=1)
    op = prepared.op or case.bench
    benchmark.extra_info.update(
        case.parameters, bytes=prepared.bytes, operations=prepared.operations, backend=backends.last_used().get(op)
    )


def _usable(peer: Peer | Absent, prepared: Prepared, inputs: tuple) -> Peer | Absent:
    """The peer, or why it cannot run or what is wrong with its result."""
    if isinstance(peer, Absent):
        return peer
    try:
        result = peer.run(*inputs)
        if peer.same:
            prepared.check(inputs, result)
    except Wrong as error:
        return Absent(f"wrong result: {error}")
    except Exception as error:  # whatever a peer dies of, it becomes a row
        return Absent(" ".join(f"{type(error).__name__}: {error}".split())[:160])
    return peer


def _figures(modes: measure.Modes, headline: str, prepared: Prepared, timer: measure.Timer) -> dict:
    """Times by mode, and the share of the ceiling, best against best; None for what an untrusted one would tell."""
    seconds = {mode: measure.spread(samples[OWN]) for mode, (samples, _) in modes.items() if OWN in samples}
    ceilings = {
        mode: bandwidth._asdict() | {"share": share(prepared.bytes / seconds[mode].best, bandwidth)}
        for mode, (_, bandwidth) in modes.items()
        if bandwidth and mode in seconds
    }
    own, ceiling = seconds[headline].p50, ceilings[headline]
    floor = {"bytes": prepared.bytes / ceiling["bytes_per_second"]} if ceiling["share"] is not None else {}
    if prepared.operations:
        floor["operations"] = prepared.operations / _rate(prepared, timer)
    bound = max(floor, key=floor.__getitem__, default=None)
    return {
        "seconds": {mode: vars(taken) for mode, taken in seconds.items()},
        "bytes": prepared.bytes,
        "operations": prepared.operations,
        "bytes_per_second": prepared.bytes / own,
        "ceiling": prepared.ceiling,
        "ceilings": ceilings,
        "ceiling_bytes_per_second": ceiling["bytes_per_second"],
        "ceiling_trusted": ceiling["share"] is not None,
        "share_of_ceiling": ceiling["share"],
        "floor_seconds": floor[bound] if bound else None,
        "bound": bound,
        "times_floor": own / floor[bound] if bound else None,
    }


def _rate(prepared: Prepared, timer: measure.Timer) -> float:
    """Operations per second that matrix products of the case's dtype reach here, measured once per process."""
    key = timer.device.type, prepared.dtype
    if key not in _rates:
        dtypes = {prepared.dtype, torch.float32} if timer.device.type == "cpu" else {prepared.dtype}
        _rates[key] = max(timer.matrix_rate(dtype) for dtype in dtypes)  # a CPU may lack products of two bytes
    return _rates[key]


_rates: dict[tuple[str, torch.dtype], float] = {}


def _peer_row(name: str, peer: Peer, modes: measure.Modes, headline: str) -> dict[str, Any]:
    """Times by mode, and how many times longer than the op it takes, in the headline's mode where it has that."""
    taken = {mode: samples for mode, (samples, _) in modes.items() if {name, OWN} <= samples.keys()}
    mode = headline if headline in taken else "cold"
    return {
        "same": peer.same,
        "mode": mode,
        "seconds": {mode: vars(measure.spread(samples[name])) for mode, samples in taken.items()},
        "ratio": measure.ratio(taken[mode], name, OWN),
        "ratios": {mode: measure.ratio(samples, name, OWN) for mode, samples in taken.items()},
    }


def free_bytes(device: torch.device) -> int:
    """Memory of the device that is free; without /proc/meminfo, more than there is."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1 << 62
