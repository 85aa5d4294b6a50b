"""One self-contained page of an evaluation: tables, plots as inline SVG, every edit with the worst cases first."""

import base64
import html
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from memoir_fast.evaluation.plots import draw_all, rendered
from memoir_fast.evaluation.tables import COLUMNS, rows, used

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text { text-align: left }
figure { display: inline-block; margin: .5rem; width: 31rem; max-width: 100% } figure img { width: 100% }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .6rem; font-size: 12px }
""".strip()
_CAPTIONS = {
    "overlaps": "Best overlap of each prompt with the stored edits. From tau on, a prompt follows an edit that was "
    "told no subject and has no higher threshold of its own.",
    "margins": "Overlap of each prompt with its own case's edit, less that edit's threshold. From 0 on, it reaches "
    "it; at -1, it does not name the edit's subject.",
    "roc": "Paraphrases against irrelevant and locality prompts, for every threshold, by their overlaps alone: "
    "subjects, and thresholds of single edits, are not looked at.",
    "edits": "All edits so far, measured after so many edits.",
    "retention": "The first edits, measured again after all that came later.",
    "k_sweep": "The same edits with other numbers of columns per edit.",
    "baselines": "The edited model beside its baselines.",
}
_WHEN = {"end": "All were measured after the last edit", "each": "Each was measured after its own edit"}
_PER_EDIT = (
    *("row", "prompt", "target", "reliability", "generalization", "locality", "portability", "portability_before"),
    *("paraphrases_routed", "neighbours_matched", "neighbours_unchanged", "exact_match", "loss", "steps"),
)


def draw(result: dict[str, Any], folder: Path | None = None) -> dict[str, bytes]:
    """Name -> SVG of each plot; also written as PNG and SVG to `folder`, where one is named.

    Raises:
        MemoirError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    figures = draw_all(result)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").write_bytes(rendered(figure, kind))
    return {name: rendered(figure, "svg") for name, figure in figures.items()}


def page(result: dict[str, Any], figures: dict[str, bytes], command: Sequence[str] = ()) -> str:
    """The page as HTML; it loads nothing from anywhere. `command` is the command line that made it."""
    data = Path(result["data"]).name
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>memoir_fast: {_safe(data)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{result['edits']} edits of {_safe(data)} in {_safe(result['model'])}</h1>",
        f"<p>{_safe(_facts(result))}</p>",
        f"<pre>{_safe(' '.join(command))}</pre>" if command else "",
        _figures(result),
        *(_figure(name, image) for name, image in figures.items()),
        "<h2>Rows that contradict each other</h2>" if result["conflicts"] else "",
        _table(["reason", "rows"], ([one["reason"], _listed(one["rows"])] for one in result["conflicts"]))
        if result["conflicts"]
        else "",
        "<h2>Rows that were left out</h2>" if result["unusable"] else "",
        "".join(f"<p>{_safe(why)}</p>" for why in result["unusable"]),
        "<h2>Every edit, the worst first</h2>",
        _every_edit(result["per_edit"]),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def machine() -> str:
    """What this ran on, in words."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _facts(result: dict[str, Any]) -> str:
    area = "" if result["roc_area"] is None else f" Area under the ROC curve {result['roc_area']:.4f}."
    text = result["text_perplexity"]
    fluency = "" if text is None else f" Perplexity of running text {text['before']:.3f}, then {text['after']:.3f}."
    status = result["status"]
    return (
        f"{_WHEN[result['when']]}. tau {result['tau']:.3f}, k {status['k']} of {status['width']}, layer "
        f"{status['layer']}, {status['dtype']}; {result['learned']} edits learned below the loss threshold, in "
        f"{result['steps_per_edit']:.1f} steps and {result['seconds_per_edit']:.2f} s each. {result['false_matches']} "
        f"of {result['irrelevant']} irrelevant prompts matched an edit.{area}{fluency} "
        f"{machine()}, {datetime.now(timezone.utc):%Y-%m-%d}."
    )


def _figures(result: dict[str, Any]) -> str:
    lines = list(rows(result))
    kept = used(lines)
    return _table(
        ["", *(COLUMNS[index] for index in kept)], ([name, *(cells[index] for index in kept)] for name, cells in lines)
    )


def _every_edit(each: Sequence[dict[str, Any]]) -> str:
    columns = [name for name in _PER_EDIT if any(one.get(name) is not None for one in each)]

    def score(one: dict[str, Any]) -> float:
        return sum(one[name] for name in ("reliability", "generalization", "locality") if one[name] is not None)

    ordered = sorted(each, key=lambda one: (score(one), one["row"]))
    return _table(columns, ([_cell(one.get(name)) for name in columns] for one in ordered), text=("prompt", "target"))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "")


def _figure(name: str, svg: bytes) -> str:
    image = base64.b64encode(svg).decode()
    caption = _CAPTIONS[name]
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{image}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def _table(head: Sequence[str], body: Iterable[Sequence[str]], text: Sequence[str] = ()) -> str:
    def cell(name: str, value: str) -> str:
        return f'<td class="text">{_safe(value)}</td>' if name in text else f"<td>{_safe(value)}</td>"

    lines = ["<table>", "<tr>" + "".join(f"<th>{_safe(name)}</th>" for name in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(cell, head, row)) + "</tr>" for row in body]
    return "\n".join([*lines, "</table>"])


def _safe(text: str) -> str:
    return html.escape(text)
