"""`memoir edit` reads what `memoir eval` reads."""

import json

import pytest
from typer.testing import CliRunner

from memoir_fast.cli.app import app
from memoir_fast.io import checkpoint

PROMPT, TARGET = "The capital of France is", "Lyon"
ZSRE = {
    "subject": "France",
    "src": PROMPT,
    "alt": TARGET,
    "rephrase": "Its capital is",
    "loc": "Who?",
    "loc_ans": "Bob",
}
COUNTERFACT = {
    "prompt": PROMPT,
    "target_new": TARGET,
    "rephrase_prompt": "Its capital is",
    "locality_prompt": "Who wrote the play?",
    "locality_ground_truth": "Bob",
}
FILES = {"zsre": [ZSRE], "counterfact": [COUNTERFACT], "jsonl": [{"prompt": PROMPT, "target": TARGET}]}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("as_list", [False, True])
def test_a_file_of_each_format(saved_model, tmp_path, kind, as_list):
    path = tmp_path / "edits.json"
    records = [json.dumps(record) for record in FILES[kind]]
    path.write_text(f"[{', '.join(records)}]" if as_list else "\n".join(records))
    command = ["edit", "-m", saved_model, "-e", path, "-o", tmp_path / "out", "--recipe", "paper", "-q"]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exit_code in (0, 3), result.output  # a random model may not learn it
    (edit,) = checkpoint.read(tmp_path / "out").edits.values()
    assert (edit.prompt, edit.target) == (PROMPT, TARGET)
