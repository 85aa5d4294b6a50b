"""An evaluation whose cases several processes measure: its figures are those of one process."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaForCausalLM

from memoir_fast.errors import MemoirError
from memoir_fast.evaluation.run import Settings, evaluate, load_data, milestones
from memoir_fast.evaluation.team import SharedRunFolder, Team

ROWS = [
    ("The capital of France is", "Rome", "France", "What is the capital town of France?", "Hm 0123", "the river"),
    ("Who wrote the play?", "camel", "play", "Which author wrote the play?", "Greek 77 77", "yes"),
    ("The colour of the sky is", "old", "sky", "What colour is the sky?", "x y z x y z", "is"),
]
VARYING = ("seconds", "seconds_per_edit", "status", "per_edit", "config", "threads")


def write(folder):
    names = ("src", "alt", "subject", "rephrase", "loc", "loc_ans")
    rows = [{**dict(zip(names, row, strict=True)), "answers": ["?"]} for row in ROWS]
    (Path(folder) / "edits.json").write_text(json.dumps(rows))


def settings(folder, **changes):
    given = {
        "tau": 0.9,
        "k": 12,
        "checkpoint_every": 2,
        "baselines": ("unedited",),
        "recipe": "fast",
        "free": False,
        **changes,
    }
    return Settings(model="tiny", data=Path(folder) / "edits.json", **given)


def result(folder, name, team):
    """What an evaluation finds, but for its times."""

    def load_model():
        model = LlamaForCausalLM.from_pretrained(f"{folder}/model").eval()
        return model, AutoTokenizer.from_pretrained(f"{folder}/model")

    chosen = settings(folder)
    kept = SharedRunFolder(team, Path(folder) / name, chosen.params())
    found = evaluate(chosen, load_data(chosen), load_model, kept, team=team)
    rows = [{key: value for key, value in row.items() if key not in VARYING} for row in found["per_edit"]]
    rest = {key: value for key, value in found.items() if key not in VARYING}
    return json.loads(json.dumps({**rest, "rows": rows, "milestones": milestones(kept)}))


def check_figures_are_those_of_one_process(folder):
    team, name = Team(), f"run-of-{dist.get_world_size()}"
    assert (team.size, team.rank) == (dist.get_world_size(), dist.get_rank())
    assert team.leads == (dist.get_rank() == 0)
    seen = []
    assert team.measured(list("abcde"), lambda own: [seen.append(one) or one * 2 for one in own]) == [
        one * 2 for one in "abcde"
    ]
    assert seen == list("abcde")[team.rank :: team.size]
    assert result(folder, name, team) == json.loads((Path(folder) / "expected.json").read_text())


def check_a_run_goes_on_where_it_stopped(folder):
    team = Team()
    again = Path(folder) / f"run-of-{team.size}"
    team.once(lambda: (again / "main.json").unlink())
    assert result(folder, again.name, team) == json.loads((Path(folder) / "expected.json").read_text())


def check_what_the_first_process_raises_is_raised_on_all(folder):
    team = Team()
    with pytest.raises(MemoirError, match="holds another run"):
        SharedRunFolder(team, Path(folder) / f"run-of-{team.size}", settings(folder, tau=0.8).params())
