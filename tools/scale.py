"""What each call costs as edits grow: synthetic ones on a tiny random model, in a folder that is open.

    python tools/scale.py 2000 8000 32000 [--banks]

Prints a table of processor seconds of one thread. Each edit has three code rows of random bits; a page takes 32.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.mask_format import pack
from memoir_fast.modules import banks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from models import bare_tokenizer, llama  # noqa: E402

ROWS, SOME = 3, 10
TOKENIZER = bare_tokenizer()
RECIPE = dataclasses.replace(RECIPES["fast"], steps=1, prefixes=0, rewordings=0)
CONFIG = MemoirConfig(layer="model.layers.1.mlp.down_proj", k=64, background=24, recipe=RECIPE, tau=0.7, check=False)


def model() -> Any:
    """The same at every call."""
    torch.manual_seed(0)
    sizes = {"hidden": 64, "intermediate": 256, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 512}
    return llama(**sizes, max_position_embeddings=256)


def fill(memoir: Memoir, edits: int, banked: bool) -> None:
    """Gives an empty memory so many edits, each in a bank of its own or in none."""
    layer, store = memoir.layer, memoir.layer.codes
    assert store is not None and layer.code is not None and memoir.config.page_edits is not None
    page = torch.arange(edits, dtype=torch.int32) // memoir.config.page_edits
    while layer.memory.pages <= int(page.max()):
        layer.memory.open()
    layer.memory.weight.normal_().mul_(1e-3)
    for number in layer.store.extend(_random(edits, layer.in_features, layer.k), page=page):
        edit = Edit(f"The capital of country {number} is", f"Town {number}", bank=f"bank {number}" if banked else "")
        banks.put(layer.store, number, edit.bank)
        memoir.edits._note(number, edit)
    owner = torch.arange(edits, dtype=torch.int32).repeat_interleave(ROWS)
    codes = _random(edits * ROWS, store.width, layer.code.k)
    store.add(owner, codes, torch.full_like(owner, store.least), torch.full_like(owner, layer.code.k))


def _random(count: int, width: int, k: int) -> torch.Tensor:
    """Masks int32 [count, W] with k bits each."""
    parts = []
    for some in torch.arange(count).split(2048):
        bits = torch.zeros((len(some), width), dtype=torch.bool)
        parts.append(pack(bits.scatter_(1, torch.rand(len(some), width).topk(k, dim=1).indices, True)))
    return torch.cat(parts)


def measured(edits: int, banked: bool, folder: Path) -> dict[str, float]:
    """Processor seconds of each call in a memory of so many edits."""
    memoir = Memoir.attach(model(), TOKENIZER, CONFIG)
    fill(memoir, edits, banked)
    memoir.save_pretrained(folder)
    memoir.detach()
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        found[name] = time.process_time() - began
        return result

    reader = Memoir.from_pretrained(model(), TOKENIZER, folder, check=False)
    memoir = timed("open", lambda: Memoir.open(model(), TOKENIZER, folder))
    memoir.edit("The first edit is", "slower")
    asked = TOKENIZER("The capital of country 7 is", return_tensors="pt").input_ids
    timed(
        f"edit, {SOME}", lambda: memoir.edit([(f"The river of {one} is", "Po") for one in range(SOME)], progress=False)
    )
    timed(
        f"edit anew, {SOME}",
        lambda: memoir.edit([(f"The river of {one} is", "Don") for one in range(SOME)], progress=False),
    )
    timed(f"delete, {SOME}", lambda: [memoir.delete(one) for one in range(SOME)])
    timed("undo", memoir.undo)
    timed("calibrate", memoir.calibrate)
    with memoir.banks("bank 5"):
        timed(f"forward, {SOME}", lambda: [memoir.model(asked) for _ in range(SOME)])
    timed("faded among 100", lambda: memoir.faded(among=[*memoir.edits][:100]))
    timed("in_bank", lambda: memoir.edits.in_bank("bank 5"))
    timed("status", memoir.status)
    timed("copy", lambda: copy.deepcopy(memoir))
    timed("save", lambda: memoir.save_pretrained(folder))
    timed("reload", lambda: reader.reload())
    memoir.detach()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("edits", type=int, nargs="+", help="how many; several are columns of the table")
    parser.add_argument("--banks", action="store_true", help="each edit is in a bank of its own")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    columns = []
    for edits in given.edits:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measured(edits, given.banks, Path(folder) / "memory"))
    print(f"| call | {' | '.join(f'{one:,}' for one in given.edits)} |\n| --- |{' --- |' * len(columns)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{one[name]:.3f}' for one in columns)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
