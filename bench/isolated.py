"""Benchmarks in processes of their own: one that crashes or hangs costs its own rows and no other's.

The next process starts while one runs, up to the point where it would use the device: its start costs no time.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

PATIENCE = 20.0
"""Seconds past its limit after which a process is killed: the row at hand may end."""

LEAST = 3.0
"""A benchmark that would have fewer seconds is not begun."""


class _Child:
    """One benchmark in a process that waits for the word to begin."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self._rows, self._log = folder / f"{name}.json", folder / f"{name}.log"
        self._output: TextIO = self._log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [*command, "--only", name, "--json", str(self._rows), "--wait"],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, seconds: float, seen: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
        """Lets it begin, with a limit for beginning another row; returns all of its rows.

        `seen` is given those that there are, several times a second.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.close()
        except OSError:
            pass  # it ended before it began; its exit code says how
        end = time.monotonic() + seconds + PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            seen(self._found())
        stopped = self._process.poll() is None
        self.end()
        code = self._process.returncode
        rows = self._found()
        if stopped:
            return [*rows, self._rest(f"stopped {PATIENCE:.0f} s past its time limit of {seconds:.0f} s")]
        if code not in (0, 1) or not rows:
            return [*rows, self._rest(f"the process ended by {_ending(code)}: {self._last_line()}")]
        return rows

    def end(self) -> None:
        """Kills it where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._output.close()

    def _found(self) -> list[dict[str, Any]]:
        for path in (self._rows, self._rows.with_name(self._rows.name + ".part")):
            try:
                return json.loads(path.read_text(encoding="utf-8"))["rows"]
            except (OSError, ValueError):
                continue  # not there yet, or being written
        return []

    def _rest(self, reason: str) -> dict[str, Any]:
        return {"bench": self.name, "case": "the rest", "parameters": {}, "failed": reason[:300], "row_seconds": 0.0}

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " ".join(lines[-1].split()) if lines else "it said nothing"


def rows_of_each(
    benchmarks: dict[str, float],
    command: Sequence[str],
    limit: float,
    seen: Callable[[list[dict[str, Any]]], None],
) -> Iterator[dict[str, Any]]:
    """The rows of the benchmarks, one after the other.

    Args:
        benchmarks: their names, in the order in which they run, and the most seconds of each.
        command: of the driver; it is given `--only NAME --json FILE --wait`, and its time limit by standard input.
        limit: seconds for all.
        seen: is given the rows so far of the one that runs.
    """
    names, end = list(benchmarks), time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix="memoir_fast-bench-") as folder:
        following: _Child | None = None
        try:
            for place, name in enumerate(names):
                left = end - time.monotonic()
                if left < LEAST:
                    yield {
                        "bench": name,
                        "case": "all",
                        "parameters": {},
                        "absent": "the time limit of the run was reached",
                        "row_seconds": 0.0,
                    }
                    continue
                child = following or _Child(name, command, Path(folder))
                more = place + 1 < len(names)
                following = _Child(names[place + 1], command, Path(folder)) if more else None
                try:
                    yield from child.run(min(left, benchmarks[name]), seen)
                finally:
                    child.end()
        finally:
            if following is not None:
                following.end()


def wait_for_word() -> float:
    """In the child: the seconds it has, once it is told to begin."""
    return float(sys.stdin.readline())


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
