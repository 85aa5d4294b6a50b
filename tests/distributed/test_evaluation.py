"""Evaluations on two processes of gloo, by accelerate."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from memoir_fast.errors import MemoirError
from memoir_fast.evaluation.team import Team


@pytest.mark.slow
def test_figures_are_those_of_one_process(tmp_path, saved_model, checks, on_processes):
    pytest.importorskip("accelerate", reason="processes evaluate together by accelerate, which is not installed")
    own = checks("checks_of_evaluation")
    own.write(tmp_path)
    (tmp_path / "expected.json").write_text(json.dumps(own.result(tmp_path, "run-of-1", Team())))
    on_processes("checks_of_evaluation", tmp_path, sizes=(2,))


def test_without_accelerate_one_process_evaluates_and_several_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Team().measured([1, 2], lambda own: [one + 1 for one in own]) == [2, 3]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MemoirError, match=r"2 processes .* pip install 'memoir-fast\[distributed\]'"):
        Team()


def test_the_documented_torchrun_leaves_the_command_its_options():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`torchrun (.*) \.\.\.`", page)
    asked = ["--run", "folder", "--model", "smollm2", "--tau", "0.5", "--k", "4"]
    parsed = get_args_parser().parse_args([*line.split(), *asked])
    assert (parsed.training_script, parsed.training_script_args) == ("memoir_fast", ["eval", *asked])
