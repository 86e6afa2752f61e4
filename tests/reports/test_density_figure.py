import numpy as np

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.records import Density
from theodolite.reports.figures import Band, Line, Rule, Ticks, density
from theodolite.reports.plotly_backend import specification


def test_the_curve_is_the_density_of_the_record():
    record = runs_by_hand.density()
    figure = density(record)
    curve = labelled(figure, Line, "density")
    mean, _ = record.evaluate(curve.x)
    shown = np.isfinite(curve.y)
    np.testing.assert_array_equal(curve.y[shown], mean[shown])
    floor = labelled(figure, Rule, "one eigenvalue").at
    assert shown.mean() > 0.1
    assert mean[~shown].max() < floor


def test_the_band_is_one_standard_error_over_probes():
    record = runs_by_hand.density()
    (band,) = marks(density(record), Band)
    _, stderr = record.evaluate(band.x)
    inside = band.low > band.low.min()
    np.testing.assert_allclose(band.high[inside] - band.low[inside], 2 * stderr[inside])


def test_a_single_eigenvalue_peaks_at_its_line():
    nodes = np.concatenate([np.zeros((1, 1)), np.ones((1, 1))], axis=1)
    record = Density(nodes=nodes, weights=np.array([[0.999, 0.001]]), size=1000)
    figure = density(record)
    single = labelled(figure, Rule, "one eigenvalue").at
    curve = labelled(figure, Line, "density")
    assert np.nanmax(curve.y[curve.x > 0.5]) / single == np.clip(np.nanmax(curve.y[curve.x > 0.5]) / single, 0.98, 1.0)
    assert not marks(figure, Band)


def test_eigenvalues_are_ticks_hollow_where_not_converged():
    spectrum = runs_by_hand.spectrum(converged=False)
    figure = density(runs_by_hand.density(), spectrum)
    (ticks,) = marks(figure, Ticks)
    np.testing.assert_array_equal(ticks.x, spectrum.eigenvalues)
    np.testing.assert_array_equal(ticks.hollow, ~spectrum.converged)
    low, high = figure.panels[0].x.limits
    assert low < spectrum.eigenvalues.min()
    assert high > spectrum.eigenvalues.max()
    assert "3 of 7 are not converged" in figure.caption


def test_padded_nodes_draw_the_same_figure():
    record = runs_by_hand.density()
    pad = np.full((record.probes, 2), np.nan)
    padded = record.replace(
        nodes=np.concatenate([record.nodes, pad], axis=1),
        weights=np.concatenate([record.weights, np.zeros_like(pad)], axis=1),
    )
    assert specification(density(padded))["data"] == specification(density(record))["data"]
