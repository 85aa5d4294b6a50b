"""`memoir presets`: the model types whose edited layer need not be named."""

from typing import Any

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import grid

_BELOW = (
    "N: that share of the number of blocks, rounded down. k: {k:.3f} of the layer's inputs, rounded to a multiple of "
    "8; 4096 of 16384. Any other layer can be named: MemoirConfig(layer=...). Tested: docs/support.md."
)


def presets(json_file: Json = None, quiet: Quiet = False) -> None:
    """List the model types whose edited layer need not be named: which layer it is, k, and what is known of them."""
    from memoir_fast.hf.presets import PRESETS, PUBLISHED_SHARE

    require_writable(json_file)
    rows = [
        {
            "model_type": kind,
            "layers": [path.replace("{block}", "N") for path in (preset.path, preset.shared) if path is not None],
            "depth": preset.depth,
            "k_per_input": PUBLISHED_SHARE,
            "known": preset.known,
        }
        for kind, preset in sorted(PRESETS.items())
    ]
    write_json(json_file, rows)
    _show(rows, console(json_file, quiet))


def _show(rows: list[dict[str, Any]], screen: Any) -> None:
    caption = _BELOW.format(k=rows[0]["k_per_input"])
    table = grid("type", "layer", "N", "known", caption=caption, caption_justify="left")
    for column in table.columns[:2]:
        column.no_wrap = True
    for row in rows:
        table.add_row(row["model_type"], "\n".join(row["layers"]), f"{row['depth']:g}", row["known"])
    screen.print(table)
