"""NaN, infinity and floats of any size are readings: each can be described, worded and drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reports import runs_by_hand
from theodolite.records import Record, Scalars
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.overview import costs_table
from theodolite.reports.plotly_backend import specification
from theodolite.reports.sections import figures_of, sections

LAYERS = len(runs_by_hand.LAYERS)
PROBE = runs_by_hand.stability(0, loss=1.0, sharpness=1.0, rate=0.1, rng=np.random.default_rng(0))
anything = st.floats(allow_nan=True, allow_infinity=True)
sizes = st.floats(min_value=0.0) | st.just(np.nan)


def vectors(length: int, elements: st.SearchStrategy[float] = anything) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, length, elements=elements)


READINGS = st.fixed_dictionaries(
    {
        "series": vectors(9),
        "sizes": vectors(9, sizes),
        "signed": vectors(LAYERS),
        "errors": vectors(LAYERS, sizes),
        "norms": vectors(LAYERS, sizes),
    }
)


def survey(series, sizes, signed, errors, norms) -> tuple[Record, ...]:
    names = ("loss", "sharpness", "preconditioned_sharpness", "threshold", "ratio", "residual", "learning_rate")
    changes = {name: float(value) for name, value in zip(names, series, strict=False)}
    grid = {"losses": signed[:6].reshape(3, 2), "stderrs": errors[:6].reshape(3, 2)}
    return (
        *(Scalars(step=step, values={"loss": float(value)}) for step, value in enumerate(series)),
        PROBE.replace(step=3, loss_stderr=float(sizes[0]), sharpness_stderr=float(sizes[1]), **changes),
        runs_by_hand.spectrum().replace(eigenvalues=signed, data_stderr=errors),
        runs_by_hand.trace().replace(layer_values=signed, layer_stderrs=errors),
        runs_by_hand.gradients().replace(layer_norms=norms, layer_norm_stderrs=errors, parameter_norms=norms[::-1]),
        runs_by_hand.line().replace(alphas=np.arange(9.0), losses=series, stderrs=sizes),
        runs_by_hand.plane().replace(alphas=np.arange(3.0), betas=np.arange(2.0), **grid),
    )


@settings(max_examples=25, deadline=None)
@given(READINGS)
def test_every_reading_is_described_and_worded(readings):
    with np.errstate(all="ignore"):
        records = survey(**readings)
        figures = figures_of(records)
        assert len(figures) == 6
        for figure in figures:
            json.dumps(specification(figure), allow_nan=False)
            for panel in figure.panels:
                assert np.isfinite([*panel.x.limits, *panel.y.limits]).all()
        assert sum(len(block.tables) for section in sections(records) for block in section.blocks) == 7
        costs_table(records)


HARD = (np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 5e-324, 1.0, -3e5)


@pytest.mark.parametrize("shift", range(3))
def test_hard_readings_are_drawn(shift):
    values = np.roll(np.array(HARD), 3 * shift)
    records = (
        *(Scalars(step=step, values={"loss": float(value)}) for step, value in enumerate(values)),
        runs_by_hand.trace().replace(layer_values=values[:LAYERS].copy(), layer_stderrs=np.abs(values[:LAYERS])),
        runs_by_hand.line().replace(alphas=np.arange(9.0), losses=values, stderrs=np.abs(values)),
        runs_by_hand.plane().replace(
            alphas=np.arange(3.0), betas=np.arange(3.0), losses=values.reshape(3, 3), stderrs=np.ones((3, 3))
        ),
    )
    with np.errstate(all="ignore"):
        for figure in figures_of(records):
            assert render(figure, format="png", scale=0.5)


def test_a_plane_of_one_row_and_an_infinite_density_keep_their_place_without_a_figure():
    plane = runs_by_hand.plane()
    row = plane.replace(betas=np.zeros(1), losses=plane.losses[:, :1], stderrs=plane.stderrs[:, :1])
    density = runs_by_hand.density()
    broken = density.replace(nodes=np.where(density.nodes > 50, np.inf, density.nodes))
    curvature, landscape = sections((row, broken))
    assert curvature.blocks[0].figure is None
    assert curvature.blocks[0].notes == ("The nodes are not finite: there is no density.",)
    assert landscape.blocks[0].figure is None
    assert landscape.blocks[0].tables[0].rows
