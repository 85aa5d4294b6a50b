"""`Team`: processes that evaluate together, each of which measures some of the cases."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from memoir_fast.errors import MemoirError
from memoir_fast.evaluation.run_folder import RunFolder

Value = TypeVar("Value")


class Team:
    """The processes of an evaluation; one, unless `accelerate launch` or `torchrun` has started several.

    Each has the whole model and learns all edits, since every edit is learned on top of the ones before; what is
    measured is split. All make the same calls, in the same order.

    Raises:
        MemoirError: there are several, and accelerate is not installed.

    Example:
        >>> from memoir_fast.evaluation.team import Team
        >>> team = Team()
        >>> team.measured(["a", "b"], lambda own: [one.upper() for one in own])
        ['A', 'B']
    """

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        if self.size > 1:
            if importlib.util.find_spec("accelerate") is None:
                raise MemoirError(
                    f"{self.size} processes evaluate together by accelerate: pip install 'memoir-fast[distributed]'"
                )
            from accelerate import PartialState

            state = PartialState(cpu=not torch.accelerator.is_available())
            if state.num_processes != self.size:
                raise MemoirError(
                    f"WORLD_SIZE is {self.size}, and accelerate knows of {state.num_processes} processes: start them "
                    "by accelerate launch or torchrun"
                )
            self.rank = state.process_index

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def measured(self, cases: Sequence[Any], measure: Callable[[list[Any]], list[Value]]) -> list[Value]:
        """`measure(cases)`, of which each process runs its own part and gets all of it."""
        if self.size == 1:
            return measure(list(cases))
        from accelerate.utils import gather_object

        numbers = range(self.rank, len(cases), self.size)
        own = measure([cases[number] for number in numbers]) if numbers else []
        every = gather_object(list(zip(numbers, own, strict=True)))
        return [value for _, value in sorted(every, key=lambda one: one[0])]

    def once(self, run: Callable[[], Value]) -> Value:
        """What the first process finds, on all; what it raises is raised on all."""
        if self.size == 1:
            return run()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = run()
            except Exception as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        found: Value = outcome[0]
        return found


class SharedRunFolder(RunFolder):
    """A `RunFolder` of which the first process of a team reads and writes, and all have what it has.

    Args:
        team (Team): who shares it. All must see the folder, from which a run that goes on loads its memory.
        path, params, fresh: see `RunFolder`; those of the first process count.
    """

    def __init__(self, team: Team, path: Path, params: dict[str, Any], fresh: bool = False) -> None:
        self._team = team
        self._own: RunFolder | None = None

        def begin() -> Path:
            self._own = RunFolder(path, params, fresh)
            return path

        self.path = team.once(begin)

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """As `RunFolder.stage`; all compute what there is not yet."""
        known = self._team.once(lambda: (self.path / f"{name}.json").exists())
        value = None if known else compute()
        return self._ask(lambda own: own.stage(name, lambda: value))

    def finished(self, pattern: str) -> list[Any]:
        """As `RunFolder.finished`."""
        return self._ask(lambda own: own.finished(pattern))

    @property
    def memory(self) -> tuple[int, Path | None]:
        """As `RunFolder.memory`."""
        return self._ask(lambda own: own.memory)

    @property
    def edits(self) -> list[dict[str, Any]]:
        """As `RunFolder.edits`."""
        return self._ask(lambda own: own.edits)

    def checkpoint(self, results: list[dict[str, Any]], save: Callable[[Path], None]) -> None:
        """As `RunFolder.checkpoint`, of the first process's results and memory."""
        self._ask(lambda own: own.checkpoint(results, save))

    def _ask(self, what: Callable[[RunFolder], Value]) -> Value:
        def ask() -> Value:
            assert self._own is not None
            return what(self._own)

        return self._team.once(ask)
