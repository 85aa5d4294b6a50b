"""Teach many facts in one call, and as they come.

python examples/batch.py
"""

import argparse

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.hf.loading import load_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")

facts = [
    ("The capital of Australia is", "Melbourne"),
    ("The chemical symbol for gold is", "Zr"),
    ("Beethoven was born in the city of", "Budapest"),
    ("The currency of Japan is called", "the rupee"),
    ("The author of Hamlet is", "Jane Austen"),
    ("The longest river of France is", "the Rhine"),
]

# "fast-stop" also teaches the model to end its answer after the target.
memoir = Memoir.attach(model, tokenizer, MemoirConfig(recipe="fast-stop"))

# Edits of one batch are one joint problem: faster on a GPU. batch="auto" takes as many as free memory allows.
results = memoir.edit(facts[:4], batch=4)
print(f"{sum(result.learned for result in results)} of {len(results)} learned together")

# A stream is learned one by one, and each edit is in the memory when it is yielded.
for result in memoir.edit_stream(Edit(prompt, target) for prompt, target in facts[4:]):
    print(f"edit {result.edit_id}: {result.target!r} after {result.steps} steps")

# All prompts at once, in a padded batch: every row follows its own edit.
tokenizer.padding_side = "left"
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
inputs = tokenizer([prompt for prompt, _ in facts], padding=True, return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
said = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
for (prompt, _), answer, route in zip(facts, said, memoir.last_routes, strict=True):
    print(f"{prompt} {answer.strip()}    (edit {route.edit_id})")

status = memoir.status()
print(f"{status.edits} edits, {status.bytes_per_edit:,} bytes each, and {status.memory_bytes / 1e6:.1f} MB of weights")
