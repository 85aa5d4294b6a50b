"""Teach a model one fact, see that other answers stay, and take the fact back.

python examples/edit.py
"""

import argparse

from memoir_fast import Memoir
from memoir_fast.hf.loading import load_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")


def say(prompt: str) -> str:
    """The first words that the model says after a prompt."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()


prompt, other = "The capital of Australia is", "The largest planet of the solar system is"
print(f"before:  {say(prompt)!r}, and elsewhere {say(other)!r}")

memoir = Memoir.attach(model, tokenizer)
result = memoir.edit(prompt, "Melbourne")
print(f"learned: {result.learned}, in {result.steps} steps and {result.seconds:.1f} s")

print(f"after:   {say(prompt)!r}", end="")
print(f", route {memoir.last_routes[0].edit_id}; ", end="")
print(f"elsewhere {say(other)!r}, route {memoir.last_routes[0].edit_id} (-1: no edit)")

memoir.delete(result.edit_id)
print(f"deleted: {say(prompt)!r}")
memoir.detach()  # the model is exactly what it was
