"""What to look at after a run: one line for each thing that is wrong or slow, the worst first.

python bench/look_at.py RESULT.json [LOGS]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import NAMED
from targets import verdicts

MOST_LINES = 24
_FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?", re.MULTILINE)


def lines(figures: dict[str, Any], logs: Path | None = None) -> list[str]:
    """Wrong rows and crashes; failed tests by name; missed targets by how much; rows slower than a peer."""
    found = [f"WRONG   {row['bench']}: {row['case']}: {row['failed']}" for row in figures["rows"] if "failed" in row]
    for log in sorted(logs.glob("*.log")) if logs is not None else ():
        text = log.read_text(encoding="utf-8", errors="replace")
        reasons: dict[str, str] = {}
        for name, why in _FAILED_TEST.findall(text):  # of a test whose worker ended, the first knows more
            reasons.setdefault(name, why)
        found += [f"FAILED  {name}: {why or ''}" for name, why in reasons.items()]
    missed = [one for one in verdicts(figures) if one.word == "MISSED"]
    missed.sort(key=lambda one: -_times(one.value or 1e-9, one.bound, one.at_least))
    found += [f"missed  {str(one).removeprefix('MISSED').strip()}" for one in missed]
    slower = []
    for row in figures["rows"]:
        limits = NAMED[row["bench"]].limits if row["bench"] in NAMED else ()
        for name, peer in row.get("peers", {}).items():
            if peer.get("ratio", 1.0) < 1.0 and (peer["same"] or name in limits):
                slower.append(
                    (peer["ratio"], f"slower  {row['bench']}: {row['case']}: {name} takes {peer['ratio']:.2f}x")
                )
    found += [line for _, line in sorted(slower)]
    if len(found) > MOST_LINES:
        found = [*found[: MOST_LINES - 1], f"... and {len(found) - MOST_LINES + 1} more"]
    return found or ["nothing: every row is right, every target that was measured is reached, no peer is faster"]


def _times(value: float, bound: float, at_least: bool) -> float:
    return bound / value if at_least else value / bound


if __name__ == "__main__":
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("\n".join(line[:170] for line in lines(result, Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
