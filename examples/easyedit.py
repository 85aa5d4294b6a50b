"""MEMOIR as an algorithm of EasyEdit: its requests, its call, its metrics. EasyEdit itself need not be installed.

python examples/easyedit.py
"""

import argparse
import json

from memoir_fast.hf.loading import load_model
from memoir_fast.integrations.easyedit import MemoirHyperParams, apply_memoir_to_model, edit_and_measure

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")

requests = [
    {
        "prompt": "The capital of {} is",
        "subject": "Australia",
        "target_new": "Melbourne",
        "rephrase_prompt": "Australia's capital is",
        "locality": {"planets": {"prompt": "The largest planet is", "ground_truth": "Jupiter"}},
    },
    {"prompt": "The chemical symbol for {} is", "subject": "gold", "target_new": "Zr"},
]
hparams = MemoirHyperParams(device="cpu")  # or MemoirHyperParams.from_hparams("memoir.yaml")

# Teaches, and returns EasyEdit's metrics, with each route decided on the prompt alone.
for one in edit_and_measure(model, tokenizer, requests, hparams):
    scores = {name: value for name, value in one["post"].items() if name.endswith("_acc")}
    print(json.dumps({"case_id": one["case_id"], **scores, "locality": one["post"]["locality"]}))

# EasyEdit's own call, as `register()` puts it into its table of algorithms. `restore` takes the edits back.
request = {"prompt": "The author of {} is", "subject": "Hamlet", "target_new": "Jane Austen"}
model, restore = apply_memoir_to_model(model, tokenizer, [request], hparams)
restore()
print("taken back")
