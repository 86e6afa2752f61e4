import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reports import runs_by_hand
from reports.marks import marks
from theodolite.reports.figures import Bars, Scatter, gradient_norms, traces
from theodolite.reports.figures.layers import MOST_ROWS, shown_layers
from theodolite.reports.plotly_backend import specification

MANY = tuple(f"encoder.layers.{index}.attention.output.dense" for index in range(200))


def test_gradient_norms_stand_beside_their_share_of_the_parameters():
    record = runs_by_hand.gradients()
    figure = gradient_norms(record)
    left, right = (marks(panel, Scatter)[0] for panel in figure.panels)
    np.testing.assert_allclose(left.x, record.layer_norms)
    np.testing.assert_allclose(left.error, record.layer_norm_stderrs)
    np.testing.assert_allclose(right.x, record.layer_norms / record.parameter_norms)
    np.testing.assert_allclose(right.error, record.layer_norm_stderrs / record.parameter_norms)
    assert figure.arrangement == "beside"
    assert figure.panels[0].y.names == record.layers


def test_layers_whose_parameters_are_zero_have_no_relative_norm():
    record = runs_by_hand.gradients()
    zero = np.where(np.arange(len(record.layers)) == 2, 0.0, record.parameter_norms)
    right = gradient_norms(record.replace(parameter_norms=zero)).panels[1]
    assert np.flatnonzero(np.isnan(marks(right, Scatter)[0].x)).tolist() == [2]


def test_a_gradient_that_is_not_finite_is_named():
    figure = gradient_norms(runs_by_hand.gradients(broken=True))
    assert figure.panels[0].y.names[-1] == "head (not finite)"
    assert "1 layers have a gradient that is not finite" in figure.caption
    specification(figure)


@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6) | st.just(np.nan)), st.integers(3, 64))
def test_the_largest_and_the_smallest_layers_are_shown(values, most):
    kept = shown_layers(values, most=most)
    assert len(kept) == min(most, len(values))
    assert np.all(np.diff(kept) > 0)
    magnitudes = np.abs(values)
    if np.isfinite(magnitudes).all():
        assert magnitudes.max() in magnitudes[kept]
        assert magnitudes.min() in magnitudes[kept]
    elif np.isnan(values).sum() <= most - most // 3:
        assert set(np.flatnonzero(np.isnan(values))) <= set(kept.tolist())


def test_many_layers_stay_readable():
    figure = gradient_norms(runs_by_hand.gradients(layers=MANY))
    assert len(figure.panels[0].y.names) == MOST_ROWS
    assert figure.height >= 12 * MOST_ROWS
    assert f"Drawn are the {MOST_ROWS} of 200 layers" in figure.caption


def test_traces_carry_their_errors_and_their_sum():
    record = runs_by_hand.trace()
    figure = traces(record)
    (points,) = marks(figure, Scatter)
    np.testing.assert_allclose(points.x, record.layer_values)
    np.testing.assert_allclose(points.error, record.layer_stderrs)
    assert points.direction == "horizontal"
    assert "106.2 ± 3.2" in figure.caption


def test_traces_of_both_signs_over_decades_are_symlog_and_hold_zero():
    record = runs_by_hand.trace()
    values = np.array([-2e4, 1.0, 3.0, 2.0, 5.0, 4e5, -1.0])
    figure = traces(record.replace(layer_values=values, layer_stderrs=0.1 * np.abs(values)))
    axis = figure.panels[0].x
    assert axis.scale == "symlog"
    assert axis.limits[0] < 0 < axis.limits[1]
    bars = next(t for t in specification(figure)["data"] if t["type"] == "bar")
    assert bars["x"][0] < 0 < bars["x"][5]


def test_bars_start_at_zero_on_a_linear_axis():
    record = runs_by_hand.trace()
    values = np.linspace(1.0, 2.0, len(record.layers))
    (panel,) = traces(record.replace(layer_values=values)).panels
    assert panel.x.limits[0] == 0.0
    np.testing.assert_array_equal(marks(panel, Bars)[0].values, values)


@pytest.mark.parametrize(
    ("draw", "record"),
    [
        (gradient_norms, runs_by_hand.gradients(layers=())),
        (traces, runs_by_hand.trace(layers=())),
    ],
)
def test_a_record_without_layers_is_refused(draw, record):
    with pytest.raises(ValueError, match="needs at least one layer"):
        draw(record)
