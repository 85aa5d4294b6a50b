"""Whole evaluations on a tiny model: figures, baselines, a run that is cut off, the page, the command line."""

import dataclasses
import importlib.util
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from memoir_fast import Memoir, MemoirConfig, MemoirError
from memoir_fast.atomic import replace
from memoir_fast.cli.app import app
from memoir_fast.core.scoring import target_accuracy
from memoir_fast.evaluation import baselines, plots, report
from memoir_fast.evaluation.margins import KINDS
from memoir_fast.evaluation.measure import Measured, figures, measure, without_memory
from memoir_fast.evaluation.roc import roc_area
from memoir_fast.evaluation.run import Settings, evaluate, load_data, milestones
from memoir_fast.evaluation.run_folder import RunFolder
from memoir_fast.evaluation.tables import markdown
from memoir_fast.io.readers import read_cases

ROWS = [
    ("The capital of France is", "Rome", "France", "What is the capital town of France?", "Hm 0123", "the river"),
    ("Who wrote the play?", "camel", "play", "Which author wrote the play?", "Greek 77 77", "yes"),
    ("Which animal lives in the desert?", "Paris", "desert", "In the desert lives which animal?", "()()()", "London"),
    ("The colour of the sky is", "old", "sky", "What colour is the sky?", "x y z x y z", "is"),
    ("The capital of France was", "Greek", "France", "What was the capital of France?", "island?!", "town"),
]
FIELDS = {
    *("model", "data", "edits", "seed", "reliability", "generalization", "locality", "average", "exact_match", "f1"),
    *("false_matches", "tau", "seconds_per_edit", "baselines", "per_edit"),
}


def records():
    names = ("src", "alt", "subject", "rephrase", "loc", "loc_ans")
    return [{**dict(zip(names, row, strict=True)), "answers": ["?"]} for row in ROWS]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(records()))
    return path


@pytest.fixture
def irrelevant(tmp_path):
    path = tmp_path / "irrelevant.txt"
    path.write_text("What time is it there?\n\nHow many of them?\n")
    return path


def settings(data, **changes):
    given = {"tau": 0.9, "k": 12, "checkpoint_every": 2, "baselines": (), "recipe": "fast", "free": False}
    return Settings(model="tiny", data=data, **{**given, **changes})


def run(chosen, model, tokenizer, folder):
    kept = RunFolder(folder, chosen.params())
    result = evaluate(chosen, load_data(chosen), lambda: (model, tokenizer), kept)
    return {**result, "milestones": milestones(kept)}


def test_figures_are_those_of_the_engine(data, irrelevant, tiny_llama, tiny_tokenizer, tmp_path):
    chosen = settings(data, irrelevant=irrelevant, baselines=("unedited",), free=True)
    result = run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "run")
    assert result.keys() >= FIELDS
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, chosen.config)
    before = target_accuracy(memoir, [row[:2] for row in ROWS])
    memoir.edit([row[:2] for row in ROWS], progress=False)
    after = target_accuracy(memoir, [row[:2] for row in ROWS])
    wordings = target_accuracy(memoir, [(row[3], row[1]) for row in ROWS])
    assert result["reliability"] == pytest.approx(sum(after) / 5)
    assert result["generalization"] == pytest.approx(sum(wordings) / 5)
    assert result["baselines"]["unedited"]["reliability"] == pytest.approx(sum(before) / 5)
    assert [one["reliability"] for one in result["per_edit"]] == after
    three = ("reliability", "generalization", "locality")
    assert result["average"] == pytest.approx(sum(result[name] for name in three) / 3)
    assert (result["edits"], result["tau"], result["irrelevant"]) == (5, 0.9, 7)
    assert 0 <= result["exact_match"] <= result["f1"] <= 1 and result["reliability"] > sum(before) / 5
    assert result["conflicts"] == [{"reason": "one subject, different targets", "rows": [1, 5]}]
    clean = [after[index] for index in (1, 2, 3)]
    assert result["conflict_free"]["reliability"] == pytest.approx(sum(clean) / 3)
    assert [one["edits"] for one in result["milestones"]] == [1, 3, 5]
    assert result["milestones"][-1]["reliability"] == result["reliability"]
    assert result["seconds_per_edit"] > 0
    json.dumps(result)


def test_the_model_is_as_before(data, tiny_llama, tiny_tokenizer, tmp_path):
    weights = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    chosen = settings(data, baselines=("ft", "always-on"), edits=2)
    run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "run")
    assert tiny_llama.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in tiny_llama.state_dict().items())


class _CutOff(Exception):
    pass


@pytest.mark.parametrize("when", ["end", "each"])
def test_a_run_cut_off_goes_on(data, tiny_llama, tiny_tokenizer, tmp_path, monkeypatch, same, when):
    """Stopped after so many edits and started anew: the results of a run in one piece, not all learned again."""
    chosen = settings(data, when=when)
    whole = run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "whole")
    learned, after = [], 3
    original = Memoir.edit

    def edit(self, edits, **options):
        if len(learned) >= after:
            raise _CutOff
        learned.extend(edits)
        return original(self, edits, **options)

    monkeypatch.setattr(Memoir, "edit", edit)
    with pytest.raises(_CutOff):
        run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "cut")
    learned.clear()
    after = 100
    resumed = run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "cut")
    assert 0 < len(learned) < 5
    assert same(resumed, whole)
    learned.clear()
    again = run(chosen, tiny_llama, tiny_tokenizer, tmp_path / "cut")
    assert learned == [] and again == resumed


@pytest.mark.parametrize("when", ["end", "each"])
def test_no_more_edits_than_asked_lie_between_checkpoints(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch, when):
    rows = [{"prompt": f"The number after {index} is", "target": str(index + 1)} for index in range(12)]
    data = tmp_path / "edits.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    kept = []
    monkeypatch.setattr(RunFolder, "checkpoint", lambda _, results, save: kept.append(len(results)))
    run(settings(data, checkpoint_every=4, when=when), tiny_llama, tiny_tokenizer, tmp_path / "run")
    assert kept[-1] == 12 and max(b - a for a, b in zip([0, *kept], kept, strict=False)) == 4


def test_measured_after_each_edit(data, tiny_llama, tiny_tokenizer, tmp_path):
    result = run(settings(data, when="each"), tiny_llama, tiny_tokenizer, tmp_path / "run")
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, settings(data).config)
    for one, row in zip(result["per_edit"], ROWS, strict=True):
        memoir.edit(*row[:2])
        assert [one["reliability"]] == target_accuracy(memoir, [row[:2]])
    overlaps = plots.overlaps(result)
    assert result["roc_area"] == roc_area(overlaps["paraphrases"], overlaps["locality"])  # as the curve is drawn
    assert "| edited, after the last edit |" in markdown(result)
    assert "Each was measured after its own edit." in report.page(result, {})
    assert result["at_end"]["reliability"] == pytest.approx(sum(target_accuracy(memoir, [row[:2] for row in ROWS])) / 5)


def test_batches_do_not_matter(data, tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(tau=0.9, k=12, background=8))
    cases = list(read_cases(data))
    memoir.edit([case.edit for case in cases[:3]], progress=False)
    found = []
    for batch in (1, 8):
        plain = without_memory(memoir, cases, batch)
        found.append(measure(memoir, cases, plain, batch=batch, free=True, likelihood=True))
    for one, other in zip(*found, strict=True):
        values, others = dataclasses.asdict(one), dataclasses.asdict(other)
        assert values.pop("perplexity") == pytest.approx(others.pop("perplexity"), rel=1e-4)
        assert values == others


def measured(row, **changes):
    given = {"edit_id": row, "reliability": 1.0, "generalization": None, "locality": None, "portability": None}
    return Measured(**{"row": row, "overlap": 1.0, "route": row, **given, **changes})


def test_figures_by_hand():
    found = figures(
        [
            measured(1, reliability=1.0, generalization=0.5, paraphrase_routes=[1, 2], locality_routes=[-1, 3]),
            measured(2, reliability=0.5, locality=1.0, perplexity=3.0, exact_match=1.0, paraphrase_routes=[-1]),
            measured(3, reliability=0.0, perplexity=301.0, exact_match=0.0, neighbours_matched=0.0),
            measured(4, reliability=0.5, neighbours_matched=0.5, neighbours_unchanged=0.25, paraphrases_routed=0.5),
        ]
    )
    assert (found["reliability"], found["generalization"], found["locality"]) == (0.5, 0.5, 1.0)
    assert found["average"] == pytest.approx(2 / 3)
    assert found["perplexity"] == {"mean": 152.0, "median": 152.0, "clipped": 51.5}
    assert (found["exact_match"], found["f1"], found["portability"], found["ood"]) == (0.5, None, None, None)
    assert found["paraphrases_matched"] == pytest.approx(2 / 3)
    names = ("paraphrases_routed", "neighbours_matched", "neighbours_unchanged", "portability_before")
    assert [found[name] for name in names] == [0.5, 0.25, 0.25, None]
    assert (found["false_matches"], found["irrelevant"], found["cases"]) == (1, 2, 4)


def test_ablations_take_out_what_they_say(tiny_llama, tiny_tokenizer):
    prompts = [row[0] for row in ROWS]
    config = MemoirConfig(tau=0.9, k=12, background=8)
    masks = {}
    for name in ("no-permutation", "random-mask", "always-on"):
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
        baselines.ablate(memoir, name)
        features = torch.randn(6, 48)
        masks[name] = memoir.layer.tophash.hash(features)
        if name == "no-permutation":
            expected = features.abs().topk(12, dim=1).indices.sort(dim=1).values
            assert torch.equal(masks[name][1].long(), expected)
        memoir.edit([row[:2] for row in ROWS[:2]], progress=False)
        with torch.no_grad():
            tiny_llama(torch.tensor([tiny_tokenizer(prompts[0]).input_ids]))
            assert memoir.last_routes[0] == (0, 1.0)  # an edit's own prompt always finds it
            tiny_llama(torch.tensor([tiny_tokenizer("Quite 8 other 9 words").input_ids]))
        assert (memoir.last_routes[0].edit_id >= 0) == (name == "always-on")
        memoir.detach()
    random_masks, columns = masks["random-mask"]
    assert columns.shape == (6, 12) and all(len(set(row)) == 12 for row in columns.tolist())
    assert len({tuple(row) for row in random_masks.tolist()}) == 6
    assert baselines.settings("dense", config, 48).k == 48 and baselines.settings("k=5", config, 48).k == 5


def test_fine_tuning_learns_and_is_undone(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, k=12))
    edits = [case.edit for case in cases_of(ROWS[:1])]
    before = memoir.layer.base.weight.clone()
    with baselines.fine_tuned(memoir, edits) as losses:
        (first,) = losses
        changed = memoir.layer.base.weight.clone()
        accuracy = target_accuracy(memoir, [ROWS[0][:2]])
    with baselines.fine_tuned(memoir, edits * 8) as losses:
        assert losses[-1] < losses[0] == pytest.approx(first)
    assert not torch.equal(before, changed) and accuracy[0] >= 0
    assert torch.equal(memoir.layer.base.weight, before)
    memoir.edit("a", "b")
    with pytest.raises(ValueError, match="without edits, this one has 1"), baselines.fine_tuned(memoir, edits):
        pass


def cases_of(rows):
    from memoir_fast.io.readers import Case

    return [Case(prompt=row[0], target=row[1]) for row in rows]


def test_names_of_baselines():
    assert baselines.names("unedited, k=20") == ["unedited", "k=20"]
    assert baselines.names("none") == [] and baselines.names("all") == list(baselines.BASELINES)
    for bad in ("wise", "k=", "k=0", "k=-3"):
        with pytest.raises(ValueError, match="a baseline must be one of unedited, .* or k=<number>, got"):
            baselines.names(bad)


def test_a_run_folder_of_something_else(tmp_path):
    RunFolder(tmp_path / "run", {"edits": 3}).stage("main", lambda: [1])
    assert RunFolder(tmp_path / "run", {"edits": 3}).stage("main", lambda: [2]) == [1]
    with pytest.raises(MemoirError, match="holds another run .edits: 3 there, 4 here"):
        RunFolder(tmp_path / "run", {"edits": 4})
    assert RunFolder(tmp_path / "run", {"edits": 4}, fresh=True).stage("main", lambda: [2]) == [2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(MemoirError, match="neither empty nor the folder of a run"):
            RunFolder(tmp_path / "other", {}, fresh)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    replace(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        replace(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def memoir_eval(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_command_and_page(data, irrelevant, saved_model, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    out = tmp_path / "out.json"
    options = ["-m", saved_model, "-d", data, "-n", 5, "--tau", 0.9, "--k", 12, "--json", out, "-q"]
    more = ["--html", tmp_path / "out.html", "--plots", tmp_path / "plots", "--run", tmp_path / "run"]
    done = memoir_eval(*options, *more, "--baselines", "unedited,ft,k=6", "--irrelevant", irrelevant)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result.keys() >= FIELDS and list(result["baselines"]) == ["unedited", "ft", "k=6"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{kind}" for name in plots.PLOTS for kind in ("png", "svg")
    }
    html = (tmp_path / "out.html").read_text()
    assert "All were measured after the last edit." in html and "1 threads" not in html
    assert "http" not in re.sub(r"base64,[^\"]+", "", html) and "<script" not in html
    assert html.count("data:image/svg+xml;base64,") == len(plots.PLOTS)
    rows = re.findall(r"<tr><td>(\d+)</td>", html.partition("Every edit, the worst first")[2])
    assert [int(row) for row in rows] == worst_first(result)
    # the same again, from what the run has kept, and without texts
    again = [option for option in more if option not in ("--plots", tmp_path / "plots")]
    done = memoir_eval(*options, *again, "--no-texts", "--baselines", "unedited,ft,k=6", "--irrelevant", irrelevant)
    assert done.exit_code == 0, done.output
    assert ROWS[0][0] not in (tmp_path / "out.html").read_text() + out.read_text()


def worst_first(result):
    def score(one):
        return sum(one[name] for name in ("reliability", "generalization", "locality"))

    return [one["row"] for one in sorted(result["per_edit"], key=lambda one: (score(one), one["row"]))]


def test_neighbours_are_reported_where_a_file_has_them(data, tiny_llama, tiny_tokenizer, tmp_path):
    names = ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
    near = tmp_path / "near.json"
    near.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in ROWS]))
    shown = ("neighbours_matched", "neighbours_unchanged")
    for file, there in ((near, True), (data, False)):
        chosen = settings(file, baselines=("unedited", "always-on"))
        result = run(chosen, tiny_llama, tiny_tokenizer, tmp_path / f"run-{file.stem}")
        assert ("| Nbr matched | Nbr same |" in markdown(result)) == there and "Port before" not in markdown(result)
        assert all((f"<th>{name}</th>" in report.page(result, {})) == there for name in shown)
        kept = [[result["per_edit"][0][name] is None, result["all_rows"][name] is None] for name in shown]
        assert kept == [[not there] * 2] * 2 and [len(result["margins"][kind]) for kind in KINDS] == [5, 5, 5 * there]
        if there:
            plain, always = (result["baselines"][name] for name in ("unedited", "always-on"))
            assert [plain[name] for name in shown] == [0.0, 1.0] and always["neighbours_matched"] == 1.0
            assert always["neighbours_unchanged"] == always["locality"] < 1.0
            assert (plain["paraphrases_routed"], plain["paraphrases_matched"]) == (None, 0.0)


def test_page_escapes_what_it_shows(data, tiny_llama, tiny_tokenizer, tmp_path):
    result = run(settings(data, edits=1), tiny_llama, tiny_tokenizer, tmp_path / "run")
    result["per_edit"][0]["prompt"] = "<script>alert(1)</script>"
    result["model"] = "<b>&"
    page = report.page(result, {}, ["memoir", "eval", "<x>"])
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;&amp;" in page and "&lt;x&gt;" in page
    assert markdown(result).splitlines()[0].startswith("| | Rel | Gen | Loc | Avg |")


def test_a_report_without_matplotlib_is_refused_before_any_work(data, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    done = memoir_eval("-m", "no-such-model", "-d", data, "--html", tmp_path / "out.html")
    assert done.exit_code == 1 and "plots need matplotlib: pip install 'memoir-fast[plots]'" in done.output


def test_wrong_options_are_told_before_any_work(data, saved_model, tmp_path):
    for options, message in (
        (["--tau", "high"], "tau must lie in (0, 1] or be 'auto', got 'high'"),
        (["--tau", "1.5"], "tau must lie in (0, 1]"),
        (["--when", "never"], "when must be 'end' or 'each', got 'never'"),
        (["--baselines", "wise"], "a baseline must be one of"),
        (["--recipe", "slow"], "recipe must be one of"),
        (["--html", tmp_path / "no" / "out.html"], "there is no folder"),
        (["--format", "csv"], "format must be one of"),
    ):
        done = memoir_eval("-m", "no-such-model", "-d", data, *options)
        assert done.exit_code == 1 and message in " ".join(done.output.split()), done.output


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts")
def test_calibrate_command(data, irrelevant, saved_model, tiny_llama, tiny_tokenizer, tmp_path):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, k=12))
    memoir.edit([row[:2] for row in ROWS], progress=False)
    memoir.save_pretrained(tmp_path / "memory")
    out = tmp_path / "out.json"
    options = ["calibrate", "-m", saved_model, "--memory", str(tmp_path / "memory"), "--json", str(out), "-q"]
    done = CliRunner().invoke(app, [*options, "--rate", "0.01"])
    assert done.exit_code == 0, done.output
    values = json.loads(out.read_text())
    assert (values["edits"], values["prompts"], values["tau_before"]) == (5, 160, 0.58)
    memoir.detach()
    assert Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / "memory").tau == values["tau"]
    done = CliRunner().invoke(app, [*options, "--irrelevant", str(irrelevant)])
    assert done.exit_code == 1 and "at least 20 irrelevant prompts, got 2" in " ".join(done.output.split())
