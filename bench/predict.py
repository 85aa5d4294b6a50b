"""A kernel's time on a GPU, predicted from a few counts, by a model fitted to one measured run.

What a kernel does is a `Work`: counts that are read off its source or its machine code. What each counted thing costs
is a `Costs`, fitted by `fit` to rows of a result file. A kernel takes

    launch + trips x trip + (filling, where it moves more than the chip has in flight) + the slowest of its resources,

where the resources are bytes from memory (in order, or gathered by rows), bytes from the second-level cache, matrix
products and issue slots, all at once. Kernels of one call follow each other: their times add.

To add a prediction, put a row into `planned` of the op's benchmark, under the name of one of its cases:

    Row("op", "1 row, D=14336, k=4096", (Work(trips=2, streamed=131_072, slots=3_000, busy=1 / 132),))

`python bench/static.py` writes it to bench/results/static.md, beside the targets of that case and what was measured;
see planned.py.

How to count: `trips` are loads or atomics that wait for the result of the one before (route -> columns -> rows are 3);
`slots` are instructions that the busiest SM issues, over all of its warps and rows (a warp's instructions x warps);
`busy` is the share of memory's bandwidth that the blocks can draw: that of the SMs that have one, up to four times as
much where they ask for all that they can at once; an `early` kernel is launched before the
one ahead of it has ended (programmatic dependent launch). A kernel whose registers or shared memory let an SM hold
one block is `alone`: its `trips` are those of one block times the blocks that an SM takes in turn. Outside of a graph
the host issues each call, and a GPU that is quicker waits for it: `issued` are the calls of a phase, not of one kernel.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

import numpy as np

# Of the H100 that was measured: SMs, instructions per clock and SM, clocks per second.
SMS, ISSUE, CLOCK = 132, 4, 1.98e9
PULL = 0.1
IN_FLIGHT = 8e6  # bytes: 132 SMs with 60 KB each asked for
ISSUED = 7.6e-6  # seconds: torch.add issued from Python on that host


class H200:
    """Rates as planned with, for what is reckoned by bounds alone: nothing of it is measured here."""

    bandwidth = 4.3e12
    """Bytes per second of a copy."""
    tensor_flops = 790e12
    """Operations per second of dense bfloat16 products."""
    clock = 1.83e9
    sms = 132
    launch = 1.3e-6
    """Seconds between two kernels of a CUDA graph."""


@dataclass(frozen=True)
class Work:
    """What one kernel does."""

    trips: int = 1
    """Round trips to memory that wait for each other."""
    streamed: float = 0.0
    """Bytes from and to memory, in order."""
    gathered: float = 0.0
    """Bytes from memory by rows of a few KB each, in no order."""
    cached: float = 0.0
    """Bytes from the second-level cache to the SMs."""
    operations: float = 0.0
    """Multiplications and additions of 16-bit matrix products."""
    slots: float = 0.0
    """Instructions that the busiest SM issues."""
    busy: float = 1.0
    """Share of memory's bandwidth that the blocks can draw."""
    early: bool = False
    """Whether it starts while the kernel ahead of it ends."""
    alone: bool = False
    """Whether an SM holds one block at a time: then nothing overlaps, and what the resources take adds up."""
    issued: float = 0.0
    """Calls that the host issues one by one meanwhile; 0 within a graph."""


CLEAR = Work(trips=1)
"""A kernel or a memset of a few bytes."""
FEW_SMS = 4
"""Times its share of the bandwidth that an SM can draw where others rest."""


@dataclass(frozen=True)
class Costs:
    """Seconds per counted thing."""

    launch: float
    """Of a kernel within a graph."""
    early: float
    """Of a kernel that starts early."""
    trip: float
    filling: float
    """Until memory is as busy as it gets, for a kernel that moves more than `IN_FLIGHT`."""
    streamed: float
    gathered: float
    cached: float
    operations: float
    slots: float

    def seconds(self, kernels: Sequence[Work]) -> float:
        """The predicted time of kernels that follow each other: of each the GPU's or the host's, if longer."""
        return sum(max(self._on_gpu(work), work.issued * ISSUED) for work in kernels)

    def _on_gpu(self, work: Work) -> float:
        return float(np.dot(_counts(work, self), astuple(self)))

    def bound(self, kernels: Sequence[Work]) -> str:
        """What the longest kernel is bound by: a resource, `latency`, or `issuing`."""
        longest = max(kernels, key=lambda work: self.seconds([work]))
        if longest.issued * ISSUED > self._on_gpu(longest):
            return "issuing"
        counts = _counts(longest, self)
        parts = dict(zip(_NAMES, np.multiply(counts, astuple(self)), strict=True))
        resource = max(_RESOURCES, key=parts.__getitem__)
        return resource if parts[resource] > sum(parts.values()) / 2 else "latency"


class Seen(NamedTuple):
    """Where the kernels of a planned row, or those that they came from, were measured on that card."""

    pattern: str = ""
    """A regular expression with one group, the microseconds, in what the probes printed; "": the row of the run."""
    since: str = ""
    """What has changed in them since; "": nothing."""
    kernels: tuple[Work, ...] = ()
    """What they did then, where something has changed."""


class Row(NamedTuple):
    """A benchmark's case, and what its kernels do."""

    bench: str
    case: str
    kernels: tuple[Work, ...]
    target: float | None = None
    """The microseconds that it shall take, where no `Target` of its benchmark says so."""
    note: str = ""
    peers: tuple[tuple[str, tuple[Work, ...]], ...] = ()
    """What the case's peers do, of those that are counted; of the others, the run's times are taken."""
    seen: Seen | None = None


class Measured(NamedTuple):
    """A row that was measured, in seconds, and whether the costs are fitted to it."""

    row: Row
    seconds: float
    fitted: bool


_NAMES = tuple(field.name for field in fields(Costs))
_RESOURCES = ("streamed", "gathered", "cached", "operations", "slots")
# Where a fit begins: a microsecond for what waits, the card's own figures for what flows.
FIRST = Costs(1.5e-6, 0.5e-6, 0.8e-6, 1e-6, 1 / 3.1e12, 1 / 2.7e12, 1 / 4.7e12, 1 / 771e12, 1 / (ISSUE * CLOCK))


def _counts(work: Work, costs: Costs) -> tuple[float, ...]:
    """How often each cost is paid; of the resources only the dearest where they overlap, memory's two as one."""
    memory = ("streamed", "gathered")
    units = {name: getattr(work, name) / (work.busy if name in memory else 1.0) for name in _RESOURCES}
    spent = {name: units[name] * getattr(costs, name) for name in _RESOURCES}
    others = [name for name in _RESOURCES if name not in memory]
    dearest = max(others, key=spent.__getitem__)
    paid: tuple[str, ...] = memory if sum(spent[name] for name in memory) >= spent[dearest] else (dearest,)
    paid = _RESOURCES if work.alone else paid
    filling = float(work.streamed + work.gathered > IN_FLIGHT)
    return (
        *(float(not work.early), float(work.early), float(work.trips), filling),
        *(units[name] if name in paid else 0.0 for name in _RESOURCES),
    )


def fit(measured: Sequence[Measured], rounds: int = 20) -> Costs:
    """Costs of the least squared relative error over the rows that are marked as fitted.

    What binds a kernel depends on the costs, so that is decided anew in each round. A pull towards `FIRST`, as strong
    as a row of which a tenth is that cost, settles what the rows leave open; no cost falls below a tenth of its first.
    """
    rows = [one for one in measured if one.fitted]
    seconds = np.array([[one.seconds] for one in rows])
    first = np.array(astuple(FIRST))
    scale, pull = np.ones(len(first)), PULL * np.eye(len(first))
    for _ in range(rounds):
        costs = Costs(*(scale * first))
        counts = np.array([np.sum([_counts(work, costs) for work in one.row.kernels], axis=0) for one in rows])
        left = np.vstack([counts * first / seconds, pull])
        right = np.concatenate([np.ones(len(rows)), np.full(len(first), PULL)])
        scale = np.maximum(np.linalg.lstsq(left, right, rcond=None)[0], 0.1)
    return Costs(*(float(cost) for cost in scale * first))


def without(measured: Sequence[Measured], left_out: Row) -> Costs:
    """The costs fitted to all rows but one."""
    return fit([one for one in measured if one.row != left_out])
