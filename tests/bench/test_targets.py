"""A target is reached, missed, or not measured; and each one names a case that there is."""

import json

import pytest


def figures(hot, **more):
    row = {
        "bench": "mask_match",
        "case": "1 query, N=100,000, D=14336",
        "headline": "cold",
        "peers": {
            "FAISS IndexBinaryFlat": {"ratios": {"cold": 9.0, "hot": 1.1}},
            "plain sum of the store": {"ratios": {"cold": 9.0, "hot": hot}},
        },
    }
    return {"machine": {"device": "cpu"}, "rows": [row], **more}


@pytest.fixture
def words(bench):
    """The word for each target of the searched store of 100,000."""

    def judge(found):
        seen = bench("targets").verdicts(found)
        return {one.what.split(": ")[1]: one.word for one in seen if "1 query, N=100,000" in one.what}

    return judge


def test_bound_is_held_to(words):
    faiss = {"times FAISS's speed": "MISSED"}
    plain_sum = "times the speed of a plain sum of the store"
    assert words(figures(0.9)) == {plain_sum: "reached"} | faiss
    assert words(figures(0.89)) == {plain_sum: "MISSED"} | faiss
    assert words(figures(None)) == {plain_sum: "not measured"} | faiss


def test_row_without_a_time_is_not_measured(words):
    found = figures(1.0)
    found["rows"] = [{"bench": "mask_match", "case": "1 query, N=100,000, D=14336", "failed": "wrong"}]
    assert set(words(found).values()) == {"not measured"}


def test_targets_that_rows_bring_are_judged_too(bench):
    row = {"bench": "edit", "case": "m", "targets": [{"what": "fast", "value": 9.0, "least": 10.0}]}
    verdict = bench("targets").verdicts(figures(1.0) | {"rows": [row]})[-1]
    assert str(verdict) == "MISSED       edit, m: fast: 9 (wanted >= 10)"


def test_strict_exit_code(bench, tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(figures(1.0)))
    assert bench("targets").main([str(path)]) == 0
    assert bench("targets").main([str(path), "--strict"]) == 1
    path.write_text(json.dumps(figures(1.0) | {"rows": []}))
    assert bench("targets").main([str(path), "--strict"]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_target_is_of_a_case_that_there_is(bench, device):
    settings = bench("cases").Settings(device=device)
    found = bench("targets").targets(device)
    assert {benchmark.name for benchmark, _ in found} >= {"mask_match", "tophash", "masked_linear"}
    for benchmark, target in found:
        assert target.case in [case.name for case in benchmark.cases(settings)]


def test_every_row_of_the_readme_is_of_a_case_that_there_is(bench):
    settings = [bench("cases").Settings(device=device) for device in ("cpu", "cuda")]
    for _, name, case in bench("table").OPS:
        for one in settings:
            assert case in [known.name for known in bench(f"bench_{name}").cases(one)], (case, one.device)


def test_a_row_may_bring_an_upper_bound(bench):
    target = {"what": "ms per edit, batched", "value": 31.0, "most": 30.0}
    rows = [{"bench": "edit_phases", "case": "a", "targets": [target, target | {"value": 29.0}]}]
    *_, above, below = bench("targets").verdicts({"machine": {"device": "cpu"}, "rows": rows})
    assert (above.word, below.word) == ("MISSED", "reached")
    assert str(above).endswith("(wanted <= 30)")
