"""Save a memory to a folder, and give it to a fresh copy of the model.

python examples/save_and_load.py
"""

import argparse
import tempfile
from pathlib import Path

import torch

from memoir_fast import Memoir
from memoir_fast.hf.loading import load_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
parser.add_argument("--out", default=None, help="folder for the memory. Default: a temporary one")
options = parser.parse_args()
folder = Path(options.out or Path(tempfile.mkdtemp()) / "corrections")

prompt = "The capital of Australia is"
model, tokenizer = load_model(options.model, dtype="float32")
inputs = tokenizer(prompt, return_tensors="pt")
memoir = Memoir.attach(model, tokenizer)
memoir.edit(prompt, "Melbourne")
with torch.no_grad():
    logits = model(**inputs.to(model.device)).logits

# Only the memory is written, not the model. A crash in the middle leaves an earlier memory readable.
memoir.save_pretrained(folder)
for file in sorted(folder.glob("*.*")):
    print(f"{file.name}: {file.stat().st_size:,} bytes")

# In another program: the same base model, without the memory. Another base model is refused.
fresh, tokenizer = load_model(options.model, dtype="float32")
memoir = Memoir.from_pretrained(fresh, tokenizer, folder)
with torch.no_grad():
    again = fresh(**inputs.to(fresh.device)).logits
print(f"{memoir.status().edits} edit loaded; the same bits as before: {torch.equal(logits, again)}")

# Going on from there is as ever.
result = memoir.edit("The chemical symbol for gold is", "Zr")
print(f"edit {result.edit_id} was added")
