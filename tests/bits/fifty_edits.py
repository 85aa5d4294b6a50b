"""Teaches fifty edits to a random model and prints, as JSON, digests of all that came of it.

Run in a process of its own, so that the processor's path and the number of threads can be chosen: see
`test_fifty_edits.py`, which also has `python tests/bits/test_fifty_edits.py` write the digests anew.
"""

import dataclasses
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from memoir_fast import Edit, Memoir, MemoirConfig, Recipe

COUNTRIES = [
    "France",
    "Italy",
    "Spain",
    "Peru",
    "Chile",
    "Japan",
    "Kenya",
    "Ghana",
    "Nepal",
    "Malta",
    "Cuba",
    "Iran",
    "Iraq",
    "Oman",
    "Laos",
    "Mali",
]
KINDS = ("The capital of {} is", "The river of {} is called", "Who wrote the anthem of {}?")
TARGETS = ("Lyon", "the Tiber", "John Smith", "Quito", "a camel", "42", "Greek")


def requests():
    """48 prompts of different lengths; then one of them again with another target, and one with a long one."""
    edits = [
        Edit(kind.format(country), TARGETS[(3 * number + place) % len(TARGETS)])
        for number, kind in enumerate(KINDS)
        for place, country in enumerate(COUNTRIES)
    ]
    return [
        *edits,
        Edit(edits[5].prompt, "Rome"),
        Edit("In which country is the mountain?", "In the old town of Greece"),
    ]


def digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part.contiguous().numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode())
    return found.hexdigest()[:16]


def files(memoir):
    """Digests of the saved folder's files, without the times of the edits; of the settings without their version."""
    memoir.edits.restore({one: dataclasses.replace(edit, taught_at=None) for one, edit in memoir.edits.items()})
    with tempfile.TemporaryDirectory() as folder:
        memoir.save_pretrained(folder)
        found = {}
        for path in sorted(Path(folder).iterdir()):
            if path.name == "memory_config.json":
                values = json.loads(path.read_text())
                del values["package_version"], values["checksum"]
                del values["config"]["recipe"]  # it has whatever settings recipes have by now
                found[path.name] = digest(json.dumps(values, sort_keys=True))
            else:
                found[path.name.split("-")[0] + path.suffix] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


# Written out, since the bits are those of these settings whatever the defaults are.
RECIPE = Recipe(
    "fast", steps=60, learning_rate=0.03, bar=0.02, optimizer="adam", prefixes=1, rewordings=3, tokens=400, damping=1.0
)


def run(model, tokenizer):
    torch.manual_seed(0)
    memoir = Memoir.attach(
        model, tokenizer, MemoirConfig(k=14, tau=0.9, seed=3, routing="paper", recipe=RECIPE, page_edits=64)
    )
    edits = requests()
    results = memoir.edit(edits[:16], progress=False)
    results += memoir.edit(edits[16:32], batch=4, recipe=dataclasses.replace(RECIPE, stop=True), progress=False)
    memoir.delete(results[3].edit_id)
    results += memoir.edit(edits[32:34], recipe="paper", progress=False)
    results += memoir.edit(edits[34:], batch=3, progress=False)
    memoir.delete(results[20].edit_id)
    calibration = memoir.calibrate(false_match_rate=0.05)
    tokenizer.padding_side = "left"
    asked = [edit.prompt for edit in edits[:40]] + [f"Tell me: {edit.prompt}" for edit in edits[40:]]
    batch = tokenizer(asked, return_tensors="pt", padding=True)
    said = model.generate(**batch, max_new_tokens=8, do_sample=False)
    routes = memoir.last_routes
    store = memoir.layer.store
    return {
        "results": digest([(one.edit_id, one.learned, one.loss, one.steps, one.replaced) for one in results]),
        "masks": digest(store.masks[: len(store)], store.columns[store.live]),
        "weights": digest(memoir.layer.memory.weight.detach()),
        "calibration": digest(calibration.to_dict()),
        "routes": digest([(route.edit_id, route.overlap) for route in routes]),
        "matched": sum(route.edit_id >= 0 for route in routes),
        "generated": digest(said),
        "files": files(memoir),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from conftest import make_tiny_llama, make_tiny_tokenizer

    torch.set_num_threads(1)
    print(json.dumps(run(make_tiny_llama(), make_tiny_tokenizer())))
