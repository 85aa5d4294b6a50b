"""How many calls of torch an edit issues on a model of LLaMA-3-8B's depth, by phase: what keeps the host busy.

    python bench/issued.py [--batch 1] [--layers 32]

The model is narrow, of random weights, on the CPU: how many calls there are depends on the depth and the recipe alone,
but for those of the CPU's own forms of damping and Adam. Views and empty tensors are no calls.
"""

import argparse
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bench_edit_phases import STEPS, within_phases
from models import bare_tokenizer, llama
from torch.utils._python_dispatch import TorchDispatchMode

from memoir_fast import Memoir
from memoir_fast.io.facts import facts

_LAUNCH_NOTHING = re.compile(
    "_unsafe_view|_reshape_alias|view|t|transpose|permute|expand|slice|select|unsqueeze|squeeze|detach|alias|split|"
    "split_with_sizes|unbind|as_strided|lift_fresh|narrow|chunk|diagonal|empty|empty_like|empty_strided|new_empty|_local_scalar_dense"
)
REST = "rest"


class Calls(TorchDispatchMode):
    """Counts calls, each for the phase that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self._phase = REST

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within the block, calls are the phase's."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _LAUNCH_NOTHING.fullmatch(function.overloadpacket.__name__):
            self.counted[self._phase] += 1
        return function(*args, **(kwargs or {}))


def per_edit(layers: int, batch: int, edits: int = 8) -> dict[str, float]:
    """Calls per edit of each phase; every edit takes STEPS steps."""
    torch.manual_seed(0)
    sizes = {"hidden": 32, "intermediate": 112, "heads": 4, "kv_heads": 2, "vocabulary": 300}
    model = llama(layers=layers, max_position_embeddings=4096, **sizes).bfloat16()
    memoir = Memoir.attach(model, bare_tokenizer())
    recipe = dataclasses.replace(memoir.config.learned, steps=STEPS, bar=0.0)
    taught = [(fact.prompt, fact.target) for fact in facts()[: 2 * edits]]
    memoir.edit(taught[:edits], recipe=recipe, batch=batch, progress=False)
    calls = Calls()
    with within_phases(calls.phase), calls:
        memoir.edit(taught[edits:], recipe=recipe, batch=batch, progress=False)
    return {phase: count / edits for phase, count in calls.counted.items()}


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="edits learned together (default: 1)")
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model (default: 32)")
    asked = parser.parse_args()
    found = per_edit(asked.layers, asked.batch)
    for phase, count in (*found.items(), ("in all", sum(found.values()))):
        print(f"{phase}: {count:.0f} calls per edit")


if __name__ == "__main__":
    main()
