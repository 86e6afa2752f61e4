import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.forecasts import edge_of_stability
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
    assert "left its range" not in figure.caption
    if first is not None:
        assert f"step {first}: above the bound" in [rule.label for rule in marks(figure, Rule)]
        assert f"above its bound at step {first}" in figure.caption


@given(
    st.lists(st.floats(0.01, 3.0) | st.just(NAN), min_size=1, max_size=12),
    st.lists(st.floats(0.1, 9.0) | st.just(NAN), min_size=1, max_size=120),
)
def test_the_departure_is_drawn_where_the_finding_says_the_loss_left_its_range(ratios, losses):
    records = [
        *readings(ratios),
        *(Scalars(step=step, values={"loss": loss}) for step, loss in enumerate(losses)),
    ]
    said = [finding.evidence.get("loss_left_step") for finding in edge_of_stability(records)]
    figure = loss_and_sharpness(records)
    for panel in figure.panels:
        drawn = [rule.at for rule in marks(panel, Rule) if rule.color == "ink"]
        assert drawn == [step for step in said if step is not None]
    for step in (step for step in said if step is not None):
        assert [rule.label for rule in marks(figure.panels[0], Rule)][-1] == f"step {step}: the loss left its range"
        assert f"left its range at step {step} (" in figure.caption


def test_the_steps_of_warning_are_a_band_from_the_crossing_to_the_departure():
    records = [*readings([0.5, 1.2, 1.3, 1.1]), *(Scalars(step=s, values={"loss": 1.0 + (s >= 25)}) for s in range(31))]
    records[-1] = Scalars(step=30, values={"loss": 5.0})
    figure = loss_and_sharpness(records)
    band = labelled(figure, Band, "20 steps from crossing to departure")
    assert band.x.tolist() == [10.0, 30.0]
    for panel in figure.panels:
        assert [rule.at for rule in marks(panel, Rule)] == [10.0, 30.0]
    assert "The training loss left its range at step 30 (5, beyond 2), 20 steps later." in figure.caption


def test_a_departure_without_a_crossing_has_no_band():
    records = [*readings([0.5, 0.6]), Scalars(step=0, values={"loss": 1.0}), Scalars(step=7, values={"loss": 9.0})]
    figure = loss_and_sharpness(records)
    assert [rule.at for rule in marks(figure.panels[0], Rule)] == [7.0]
    assert not [band for band in marks(figure, Band) if band.color == "ink"]
    assert "The training loss left its range at step 7 (9, beyond 2)." in figure.caption


def test_a_reading_without_a_bound_yet_is_neutral_and_a_lost_one_is_not():
    first, *others = readings([NAN, 0.5, NAN, 0.6])
    first = first.replace(sharpness=4.0, threshold=NAN, rule="unknown")
    figure = loss_and_sharpness([first, *others])
    waiting, lost = (tick for tick in sorted(marks(figure.panels[1], Ticks), key=lambda tick: tick.color == "crossing"))
    assert (waiting.x.tolist(), waiting.color, waiting.label) == ([0.0], "faint", "not judged yet")
    assert (lost.x.tolist(), lost.label) == ([20.0], "not finite from here")
    assert "no bound to judge by at step 0" in figure.caption
    assert labelled(figure, Line, "stability bound: 2(1+β)/lr")
    assert "no bound to hold it against" in labelled(figure, Scatter, "sharpness").hover[0]


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
    records = [r.replace(threshold=NAN, ratio=NAN, preconditioned_sharpness=NAN) for r in readings([0.5, 0.7])]
    figure = loss_and_sharpness(records)
    assert not [mark for mark in marks(figure, Line) if mark.dash]
    assert not marks(figure, Band)
    assert not marks(figure, Ticks)
    np.testing.assert_array_equal(labelled(figure, Scatter, "sharpness").y, [r.sharpness for r in records])
    np.testing.assert_array_equal(labelled(figure, Scatter, "sharpness").error, [r.sharpness_stderr for r in records])
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
