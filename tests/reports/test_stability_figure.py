import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.records import Scalars, Stability
from theodolite.reports.figures import Band, Line, Rule, Scatter, Ticks, loss_and_sharpness
from theodolite.reports.plotly_backend import specification

NAN = float("nan")


def readings(ratios: list[float], **changes: object) -> list[Stability]:
    rng = np.random.default_rng(0)
    probe = runs_by_hand.stability(0, loss=1.0, sharpness=1.0, rate=0.1, rng=rng)
    bound = probe.threshold
    return [
        probe.replace(
            step=10 * index,
            sharpness=ratio * bound,
            preconditioned_sharpness=ratio * bound,
            ratio=ratio,
            sharpness_stderr=0.1 * bound,
            **changes,
        )
        for index, ratio in enumerate(ratios)
    ]


@given(st.lists(st.floats(0.01, 3.0) | st.just(NAN), min_size=1, max_size=12))
def test_the_first_crossing_is_a_rule_in_both_panels(ratios):
    figure = loss_and_sharpness(readings(ratios))
    first = next((10 * index for index, ratio in enumerate(ratios) if ratio > 1), None)
    expected = [] if first is None else [float(first)]
    for panel in figure.panels:
        assert [rule.at for rule in marks(panel, Rule)] == expected
    if first is not None:
        assert f"step {first}: above the bound" in [rule.label for rule in marks(figure, Rule)]
        assert f"above its bound at step {first}" in figure.caption


def test_the_order_of_the_records_does_not_matter():
    run = list(runs_by_hand.unstable_run())
    shuffled = random.Random(0).sample(run, len(run))
    assert specification(loss_and_sharpness(shuffled)) == specification(loss_and_sharpness(run))


def test_markers_are_hollow_exactly_where_the_probe_did_not_converge():
    records = readings([0.2, 0.4, 0.6, 0.8])
    records[2] = records[2].replace(converged=False, residual=0.3)
    figure = loss_and_sharpness(records)
    sharpness = labelled(figure, Scatter, "sharpness")
    assert sharpness.hollow.tolist() == [False, False, True, False]
    assert "NOT CONVERGED" in sharpness.hover[2]
    assert "1 of 4 probes did not converge" in figure.caption


def test_error_bars_are_one_standard_error_of_the_sharpness():
    records = readings([0.5, 0.9])
    sharpness = labelled(loss_and_sharpness(records), Scatter, "sharpness")
    np.testing.assert_allclose(sharpness.error, [record.sharpness_stderr for record in records])
    probes = labelled(loss_and_sharpness(records), Scatter, "problem")
    np.testing.assert_allclose(probes.error, [record.loss_stderr for record in records])


def test_a_preconditioned_sharpness_is_named_and_keeps_the_relative_error():
    records = [
        r.replace(preconditioned_sharpness=50 * r.sharpness, threshold=50 * r.threshold) for r in readings([0.5])
    ]
    figure = loss_and_sharpness(records)
    sharpness = labelled(figure, Scatter, "sharpness")
    np.testing.assert_allclose(sharpness.error / sharpness.y, records[0].sharpness_stderr / records[0].sharpness)
    assert figure.panels[1].y.label == "preconditioned sharpness"
    assert "carried over" in figure.caption


def test_the_bound_follows_the_schedule():
    records = readings([0.5, 0.5, 0.5])
    bounds = [10.0, 20.0, 40.0]
    records = [record.replace(threshold=bound) for record, bound in zip(records, bounds, strict=True)]
    bound = labelled(loss_and_sharpness(records), Line, "stability bound: 2(1+β)/lr")
    np.testing.assert_array_equal(bound.y, bounds)
    assert bound.dash


def test_an_optimiser_without_a_rule_shows_the_sharpness_alone():
    records = [r.replace(threshold=NAN, ratio=NAN) for r in readings([0.5, 0.7])]
    figure = loss_and_sharpness(records)
    assert not [mark for mark in marks(figure, Line) if mark.dash]
    assert not marks(figure, Band)
    assert "No stability bound is known" in figure.caption


def test_readings_that_are_not_finite_are_gaps_a_stretch_and_a_cross():
    losses = [1.0, 2.0, np.inf, NAN, 3.0, NAN]
    figure = loss_and_sharpness([Scalars(step=5 * i, values={"loss": loss}) for i, loss in enumerate(losses)])
    (panel,) = figure.panels
    np.testing.assert_array_equal(np.isnan(marks(panel, Line)[0].y), [False, False, True, True, False, True])
    assert marks(panel, Ticks)[0].x.tolist() == [10.0, 25.0]
    assert sorted(set(marks(panel, Band)[0].x)) == [10.0, 15.0, 25.0]
    assert "not finite at 3 of 6 logged steps, first at step 10" in figure.caption


def test_a_run_that_was_never_finite_can_be_drawn():
    figure = loss_and_sharpness([Scalars(step=i, values={"loss": NAN}) for i in range(3)])
    assert "first at step 0" in figure.caption
    specification(figure)


def test_a_loss_over_decades_is_logarithmic():
    figure = loss_and_sharpness(runs_by_hand.unstable_run())
    assert figure.panels[0].y.scale == "log"
    assert figure.panels[1].y.scale == "linear"


def test_thousands_of_losses_are_thinned_and_keep_the_spike():
    losses = np.ones(4_000)
    losses[2_345] = 50.0
    records = [Scalars(step=i, values={"loss": float(loss)}) for i, loss in enumerate(losses)]
    curve = marks(loss_and_sharpness(records), Line)[0]
    assert len(curve.x) <= 1500
    assert curve.x[curve.y.argmax()] == 2_345


def test_records_without_a_loss_are_refused():
    with pytest.raises(ValueError, match=r"found 1 records, none of them such. Train under a Monitor"):
        loss_and_sharpness([Scalars(step=1, values={"lr": 0.1})])
