"""`memoir env`: what this machine offers, and which backend serves which op."""

from typing import Any

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import grid


def env(json_file: Json = None, quiet: Quiet = False) -> None:
    """Show what this machine offers: versions, processor, GPU, and for each op and backend: available, or why not."""
    from memoir_fast.cli.collect_env import collect

    require_writable(json_file)
    report = collect()
    write_json(json_file, report)
    _show(report, console(json_file, quiet))


def _show(report: dict[str, Any], screen: Any) -> None:
    table = grid("", "", show_header=False)
    for name, value in _flat({name: value for name, value in report.items() if name != "backends"}):
        table.add_row(name, value)
    screen.print(table)
    rows = report["backends"]
    if isinstance(rows, dict):
        screen.print(f"backends: {rows['error']}", markup=False)
        return
    table = grid("op", "backend", "available", "why not")
    for row in rows:
        table.add_row(row["op"], row["backend"], "yes" if row["available"] else "no", _text(row["reason"] or ""))
    screen.print(table)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as (dotted name, text) rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, one in enumerate(value):
                rows += _flat(one, f"{prefix}{name}.{index}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            rows.append((prefix + name, _text("-" if shown in (None, "") else str(shown))))
    return rows


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(value)
