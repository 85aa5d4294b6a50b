"""Choose the threshold from which a prompt counts as a paraphrase of an edit.

Too low, and unrelated prompts are answered with an edit's target; too high, and paraphrases are missed.

python examples/calibrate.py
"""

import argparse
import warnings

from memoir_fast import Memoir
from memoir_fast.hf.loading import load_model

CAPITALS = ["Peru", "Norway", "Kenya", "Nepal", "Cuba", "Ghana", "Chile", "Iran", "Laos", "Mali", "Oman", "Malta"]
THINGS = ["bridge", "garden", "engine", "violin", "harbour", "kitchen", "library", "market", "museum", "orchard"]
IRRELEVANT = [text for thing in THINGS for text in (f"My neighbour's {thing} is", f"How do I paint a {thing}?")]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")

memoir = Memoir.attach(model, tokenizer)
memoir.edit([(f"The capital of {country} is", "Rome") for country in CAPITALS], progress=False)
print(f"with {memoir.status().edits} edits, tau = {memoir.tau:.3f}")  # from 16 edits on it is chosen by itself

# The more like your real traffic the irrelevant prompts are, the better the threshold.
for rate in (1e-3, 1e-2, 1e-1):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = memoir.calibrate(IRRELEVANT, false_match_rate=rate)
    print(f"a false match in {1 / rate:,.0f}: tau = {found.tau:.3f}, ", end="")
    print(f"{found.rewordings_matched:.0%} of slightly reworded prompts still match", end="")
    print(f" ({len(caught)} warning)" if caught else "")

# A later call without prompts takes the same ones again; the choice is saved with the memory.
found = memoir.calibrate(false_match_rate=1e-2)
print(f"in force: {memoir.tau:.3f}, expected at 1,000 edits: {found.expected_tau(1000):.3f}")
