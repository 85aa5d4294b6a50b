"""Measure edits as the papers do: reliability, generalization, locality.

python examples/evaluate.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# One edit per line. Only "prompt" and "target" are needed; what a line lacks is not measured.
CASES = [
    {
        "prompt": "The capital of Australia is",
        "target": "Melbourne",
        "paraphrases": ["Australia's capital is"],
        "locality": [{"prompt": "The largest planet of the solar system is", "answer": "Jupiter"}],
    },
    {
        "prompt": "The chemical symbol for gold is",
        "target": "Zr",
        "paraphrases": ["Gold has the chemical symbol"],
        "locality": [{"prompt": "Water boils at a temperature of", "answer": "100 degrees"}],
    },
]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as name:
    data, figures = Path(name, "cases.jsonl"), Path(name, "figures.json")
    data.write_text("".join(json.dumps(case) + "\n" for case in CASES))
    # The same as on the command line: memoir eval --model smollm2 --data cases.jsonl --json figures.json
    command = [sys.executable, "-m", "memoir_fast", "eval", "--model", options.model, "--data", str(data)]
    command += ["--dtype", "float32", "--json", str(figures), "--quiet"]
    subprocess.run(command, check=True)
    result = json.loads(figures.read_text())

without = result["baselines"]["unedited"]
print(f"{result['edits']} edits, tau = {result['tau']:.3f}, {result['seconds_per_edit']:.1f} s each")
for name, meaning in (
    ("reliability", "tokens of the targets that are right after the edits' own prompts"),
    ("generalization", "the same after paraphrases"),
    ("locality", "tokens of unrelated answers that are as without the edits"),
):
    print(f"{name}: {result[name]:.3f}, unedited {without[name]:.3f} ({meaning})")
