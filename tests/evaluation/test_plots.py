"""What the plots of an evaluation draw."""

import pytest

from memoir_fast.evaluation import plots


def test_k_sweep_has_the_run_s_own_k():
    """As a point of the lines where it learned as many edits as the others, apart where it learned more."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    names = ("reliability", "generalization", "locality", "paraphrases_routed")
    swept = {
        f"k={k}": dict(zip(("cases", *names), (24, k / 100, 0.5, 1.0, 0.25), strict=True)) for k in (5, 10, 20, 80)
    }
    main = dict(zip(names, (0.4, 0.6, 0.9, 0.7), strict=True))
    result = {"baselines": {"unedited": {}, **swept}, "config": {"k": 40}, "status": {"width": 96}, "all_rows": main}
    for edits, expected in ((24, [5, 10, 20, 40, 80]), (100, [5, 10, 20, 80])):
        (axes,) = plots.PLOTS["k_sweep"]({**result, "edits": edits}).axes
        lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
        assert [list(line.get_xdata()) for line in lines] == [expected] * 4
        assert [line.get_label() for line in lines][:3] == list(names[:3])
        apart = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if len(line.get_xdata()) == 1]
        assert apart == ([] if edits == 24 else [([40], [main[name]]) for name in names])
        assert axes.get_xscale() == "log"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "10", "20", "40", "80"]


def test_lines_over_the_edits_hide_none_and_name_one_edit_so():
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    same = {"reliability": 1.0, "generalization": 1.0, "locality": 1.0}
    for first, title in ((1, "What is left of the first edit"), (10, "What is left of the first 10 edits")):
        steps = [{"edits": edits, **same, "first": {"cases": first, **same}} for edits in (first, 12)]
        (axes,) = plots.PLOTS["retention"]({"milestones": steps}).axes
        assert axes.get_title() == title
        widths = [line.get_linewidth() for line in axes.lines]
        assert len(widths) == 2 and widths == sorted(set(widths), reverse=True)
