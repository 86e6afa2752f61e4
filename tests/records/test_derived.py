import math

import numpy as np
import pytest

from theodolite.records import Estimate, Gradients, Line, Plane, Stability, Trace

NAN, INF = math.nan, math.inf


def line(losses, alphas, **changes):
    count = len(alphas)
    values = {"stderrs": np.zeros(count), "direction_norm": 2.0, "name": "filter", "parameter_norm": 10.0}
    return Line(alphas=np.array(alphas, dtype=float), losses=np.array(losses, dtype=float), **(values | changes))


def plane(losses, alphas, betas, **changes):
    losses = np.array(losses, dtype=float)
    values = {"stderrs": np.zeros(losses.shape), "direction_norms": (2.0, 0.5), "cosine": 0.0, "name": "filter",
              "parameter_norm": 1.0}  # fmt: skip
    return Plane(
        alphas=np.array(alphas, dtype=float), betas=np.array(betas, dtype=float), losses=losses, **(values | changes)
    )


def test_trace_whole_mean_and_by_layer():
    record = Trace(value=6.0, stderr=0.3, layers=("a", "b"), layer_values=np.array([4.0, 2.0]),
                   layer_stderrs=np.array([0.2, 0.1]), probes=8, method="hutch++", size=3)  # fmt: skip
    assert record.estimate == Estimate(6.0, 0.3, 7)
    assert record.mean_eigenvalue == Estimate(2.0, 0.3 / 3, 7)
    assert record.by_layer == {"a": Estimate(4.0, 0.2, 7), "b": Estimate(2.0, 0.1, 7)}
    assert record.replace(probes=1).estimate.degrees is None
    assert "tr = 6.0 ± 0.3 (probes)" in repr(record)


def test_gradients_relative_norms_and_estimates():
    record = Gradients(loss=1.0, loss_stderr=0.1, norm=5.0, norm_stderr=0.5, layers=("a", "b", "c"), samples=7,
                       layer_norms=np.array([3.0, 4.0, 0.0]), layer_norm_stderrs=np.zeros(3),
                       parameter_norms=np.array([6.0, 0.0, 1.0]))  # fmt: skip
    np.testing.assert_array_equal(record.relative_norms, [0.5, NAN, 0.0])
    assert record.loss_estimate == Estimate(1.0, 0.1)
    assert record.norm_estimate == Estimate(5.0, 0.5)
    cut = record.replace(context={"chunks": 5})
    assert (cut.loss_estimate.degrees, cut.norm_estimate.degrees) == (4, 4)
    assert record.replace(context={"chunks": 1}).loss_estimate.degrees is None


@pytest.mark.parametrize(
    ("ratio", "crossed", "rate"), [(0.5, False, 0.2), (1.25, True, 0.08), (-1.0, False, INF), (NAN, False, NAN)]
)
def test_stability_crossing_and_allowed_rate(ratio, crossed, rate):
    record = Stability(loss=1.0, loss_stderr=NAN, gradient_norm=1.0, sharpness=20.0, sharpness_stderr=2.0, residual=1e-4,
                       converged=True, tol=1e-3, preconditioned_sharpness=20.0, threshold=20.0, ratio=ratio,
                       learning_rate=0.1, momentum=0.0, optimizer="SGD", rule="2/lr")  # fmt: skip
    assert record.crossed is crossed
    assert record.max_learning_rate == pytest.approx(rate, nan_ok=True)
    assert record.ratio_estimate.stderr == pytest.approx(abs(ratio) * 0.1, nan_ok=True)
    assert math.isnan(record.replace(sharpness=0.0).ratio_estimate.stderr)


def test_a_line_of_a_parabola_gives_its_curvature_on_any_spacing():
    # L = 3 + α + ½·5·α²; along d of norm 2 the curvature per unit length is 5/4.
    alphas = np.array([-1.0, -0.3, 0.0, 0.1, 2.0])
    record = line(3 + alphas + 2.5 * alphas**2, alphas, stderrs=np.array([1.0, 0.2, 0.0, 0.1, 1.0]))
    assert record.center == 3
    assert record.curvature.value == pytest.approx(5 / 4)
    # 2/(h₋(h₋+h₊)‖d‖²) = 2/(0.3·0.4·4) and 2/(0.1·0.4·4) times the errors 0.2 and 0.1
    assert record.curvature.stderr == pytest.approx(0.2 * 2 / 0.48 + 0.1 * 2 / 0.16)


def test_a_line_that_explodes():
    record = line([INF, 4.0, 2.0, 3.0, NAN], [-2, -1, 0, 1, 2])
    assert record.finite.tolist() == [False, True, True, True, False]
    assert record.minimum == (0.0, 2.0)
    np.testing.assert_array_equal(record.masked(3.5), [NAN, NAN, 2, 3, NAN])
    np.testing.assert_array_equal(record.masked(), [NAN, 4, 2, 3, NAN])
    assert "2 of 5 NOT FINITE" in repr(record)
    nothing = line([NAN, INF], [-1, 0])
    assert all(map(math.isnan, nothing.minimum))
    assert math.isnan(nothing.curvature.value)
    assert math.isnan(line([INF, INF, INF], [-1, 0, 1]).curvature.value)


def test_a_line_without_its_centre_does_not_guess_it():
    record = line([1.0, 2.0], [-1, 1])
    assert math.isnan(record.center)
    assert math.isnan(record.curvature.value)


def test_a_plane_of_a_paraboloid():
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-1, 2, 7)
    grid = 1 + 2 * alphas[:, None] ** 2 + 0.5 * (betas[None, :] - 0.5) ** 2 + alphas[:, None] * betas[None, :]
    record = plane(grid, alphas, betas)
    assert record.center == pytest.approx(1.125)
    assert [one.value for one in record.curvatures] == pytest.approx([4 / 4, 1 / 0.25])
    alpha, beta, lowest = record.minimum
    assert lowest == grid.min()
    assert grid[list(alphas).index(alpha), list(betas).index(beta)] == lowest
    assert record.finite.all()
    assert np.nanmax(record.masked(2.0)) <= 2.0


def test_a_plane_without_its_centre_does_not_guess_it():
    record = plane(np.ones((2, 3)), [-1, 1], [-1, 0, 1])
    assert math.isnan(record.center)
    assert all(math.isnan(one.value) for one in record.curvatures)
    broken = plane([[NAN, INF], [INF, NAN]], [0, 1], [0, 1])
    assert all(map(math.isnan, broken.minimum))
    assert "4 of 4 NOT FINITE" in repr(broken)
