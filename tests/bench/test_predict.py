"""The model of a kernel's time: it finds the costs that made the times, and counts what a kernel says of itself."""

import pytest


@pytest.fixture
def predict(bench):
    return bench("predict")


def test_fit_finds_the_costs_that_made_the_times(predict):
    costs = predict.Costs(2e-6, 0.3e-6, 0.6e-6, 1.2e-6, 1 / 2e12, 1 / 1.5e12, 1 / 4e12, 1 / 5e14, 1 / 5e9)
    kernels = [
        (predict.Work(),),
        (predict.Work(trips=9),),
        (predict.Work(), predict.Work(trips=3, early=True)),
        *((predict.Work(streamed=size),) for size in (1e6, 1e7, 1e9)),
        *((predict.Work(gathered=size),) for size in (1e6, 1e9)),
        (predict.Work(streamed=1e7, busy=0.5),),
        (predict.Work(cached=1e9),),
        (predict.Work(operations=1e12),),
        (predict.Work(slots=1e6),),
        (predict.Work(slots=1e6, streamed=1e8, alone=True),),
    ]
    measured = [
        predict.Measured(predict.Row("op", str(index), work), costs.seconds(work), True)
        for index, work in enumerate(kernels)
    ]
    found = predict.fit(measured)
    for one in measured:
        assert found.seconds(one.row.kernels) == pytest.approx(one.seconds, rel=0.05)
    assert found.streamed == pytest.approx(costs.streamed, rel=0.05)
    assert found.launch + found.trip == pytest.approx(costs.launch + costs.trip, rel=0.05)


def test_a_row_that_is_not_fitted_changes_nothing(predict):
    rows = [predict.Measured(predict.Row("op", "a", (predict.Work(streamed=1e9),)), 1e-3, True)]
    wild = predict.Measured(predict.Row("op", "b", (predict.Work(streamed=1e9),)), 1.0, False)
    assert predict.fit([*rows, wild]) == predict.fit(rows)
    assert predict.without([*rows, rows[0]._replace(row=wild.row)], wild.row) == predict.fit(rows)


def test_slowest_resource_counts_and_alone_adds_them(predict):
    costs = predict.FIRST
    both = predict.Work(streamed=1e8, operations=1e12)
    fixed = costs.launch + costs.trip + costs.filling
    assert costs.seconds([both]) == pytest.approx(fixed + 1e12 * costs.operations)
    assert costs.bound([both]) == "operations" and costs.bound([predict.Work(trips=5)]) == "latency"
    added = predict.Work(streamed=1e8, operations=1e12, alone=True)
    expected = fixed + 1e12 * costs.operations + 1e8 * costs.streamed
    assert costs.seconds([added]) == pytest.approx(expected)
    early = predict.Work(early=True)
    assert costs.seconds([predict.Work(), early]) == pytest.approx(costs.launch + costs.early + 2 * costs.trip)


def test_every_fitted_row_was_measured_and_is_predicted_well(bench):
    """The costs come from the run in bench/results; counts that no longer fit it would show here."""
    predict, measured = bench("predict"), bench("static_time").measured()
    costs = predict.fit(measured)
    for one in measured:
        if one.fitted:
            assert costs.seconds(one.row.kernels) == pytest.approx(one.seconds, rel=0.25), one.row.case


def test_host_that_issues_more_slowly_than_the_gpu_works_is_waited_for(predict):
    costs, work = predict.FIRST, predict.Work(streamed=1e9)
    alone = costs.seconds([work])
    few, many = (predict.Work(streamed=1e9, issued=calls) for calls in (1, 1e3))
    assert costs.seconds([few, many]) == pytest.approx(alone + 1e3 * predict.ISSUED)
    assert costs.bound([few]) == "streamed" and costs.bound([few, many]) == "issuing"
