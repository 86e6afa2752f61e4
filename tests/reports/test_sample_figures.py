"""Figures of per-sample gradients show the record's own numbers, in both backends, for any reading."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest

from reports import runs_by_hand
from reports.marks import labelled, marks
from theodolite.records import Cost, Gradients, TaskGradients
from theodolite.records.gram import cosines
from theodolite.reports.figures import Cells, Figure, Labels, Line, conflicts, gram, sample_norms, trade_off
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.plotly_backend import specification
from theodolite.reports.sections import sections

DRAW = (gram, conflicts, sample_norms, trade_off)


def record(
    *, samples: int = 24, groups: tuple[str, ...] = ("north", "south"), outlier: bool = True, mean: float = 0.5
) -> Gradients:
    """Two groups with opposite means in the first half of the entries and equal ones in the second, and one long gradient."""
    rng = np.random.default_rng(0)
    place = np.arange(samples) % len(groups)
    rows = rng.standard_normal((2, samples, 30))
    rows[0] += np.where(place == 0, 1.0, -1.0)[:, None]
    rows[1] += mean
    if outlier:
        rows[:, 7] *= 60
    grams = np.einsum("lbj,lcj->lbc", rows, rows)
    return runs_by_hand.gradients(layers=("trunk", "head"), step=5).replace(
        gram=grams.sum(axis=0),
        layer_grams=grams,
        indices=100 + np.arange(samples),
        groups=place,
        group_names=groups,
    )


def drawn(figure: Figure) -> None:
    """Valid in both backends."""
    spec = specification(figure)
    json.dumps(spec, allow_nan=False)
    go.Figure(spec)
    ElementTree.fromstring(render(figure))


def test_cosines_are_ordered_by_group_and_norm() -> None:
    found = record()
    figure = gram(found)
    (cells,) = marks(figure, Cells)
    order = sorted(range(24), key=lambda i: (found.groups[i], -found.sample_norms[i]))
    np.testing.assert_allclose(cells.z, cosines(found.gram)[np.ix_(order, order)])
    assert figure.panels[0].x.names == ("north", "south")
    assert figure.panels[0].x.places == (5.5, 17.5)
    assert marks(figure, Line)[0].x.tolist() == [11.5, 11.5]
    assert cells.hover[0][1].startswith(f"samples {found.indices[order[0]]} and {found.indices[order[1]]}<br>cosine")
    drawn(figure)


def test_many_samples_are_thinned_alike_and_lost_ones_are_said() -> None:
    found = record(samples=400, groups=("a", "b", "c", "d"))
    broken = found.gram.copy()
    broken[3], broken[:, 3] = np.nan, np.nan
    figure = gram(found.replace(gram=broken, layer_grams=None))
    (cells,) = marks(figure, Cells)
    assert cells.z.shape == (128, 128)
    assert np.isfinite(cells.z).all()
    assert "128 of 399 samples" in figure.caption
    assert "1 samples without a finite gradient" in figure.caption
    assert np.diff(figure.panels[0].x.places).round().tolist() == [32, 32, 32]
    alone = gram(found.replace(groups=None, group_names=()))
    assert alone.panels[0].x.names == ()


def test_conflicts_lie_where_they_were_planted() -> None:
    found = record(outlier=False, samples=40)
    figure = conflicts(found)
    (cells,) = marks(figure, Cells)
    assert figure.panels[0].y.names == ("whole", "trunk", "head")
    assert figure.panels[0].x.names == ("north · south",)
    assert cells.marked[:, 0].tolist() == [True, True, False]
    expected = [found.group_alignment, *found.layer_group_alignment.values()]
    np.testing.assert_allclose(cells.z[:, 0], [each.cosines[0, 1] for each in expected])
    assert "north against south" in figure.caption
    assert "1 of 2 layers" in figure.caption
    without = conflicts(found.replace(layer_grams=None))
    assert without.panels[0].y.names == ("whole",)
    assert "layers=True" in without.caption
    many = record(samples=60, groups=tuple("abcdefghij"))
    assert len(conflicts(many).panels[0].x.names) == 24
    assert "24 of 45 pairs" in conflicts(many).caption
    drawn(figure)


def test_outliers_carry_their_places() -> None:
    found = record()
    figure = sample_norms(found)
    (labels,) = marks(figure, Labels)
    assert labels.texts == ("#107",)
    assert labels.x[0] == pytest.approx(found.sample_norms[7])
    outline = next(mark for mark in marks(figure, Line) if mark.color == "gradient")
    assert outline.y[::2].sum() == 24
    assert "1 outliers, the largest first: 107." in figure.caption
    assert not marks(sample_norms(record(outlier=False)), Labels)
    drawn(figure)


def test_the_trade_off_is_the_records_own() -> None:
    found = record(outlier=False, mean=2.0)
    figure = trade_off(found)
    steps, samples = (labelled(figure, Line, word) for word in ("steps", "samples"))
    expected = found.trade_off(steps.x)
    np.testing.assert_allclose(steps.y, expected[0])
    np.testing.assert_allclose(samples.y, expected[1])
    assert not steps.dash
    assert "Bands" in figure.caption
    noisy = trade_off(record())
    assert labelled(noisy, Line, "steps").dash
    assert "guess" in noisy.caption
    drawn(figure)
    drawn(noisy)


def test_the_page_has_a_section_of_them() -> None:
    (layers, alignment) = sections((record(outlier=False, mean=2.0),))
    assert layers.name == "layers"
    assert alignment.name == "alignment"
    names = [block.figure.name for block in alignment.blocks if block.figure]
    assert names == ["gradient-cosines", "group-conflicts", "sample-norms", "noise-scale"]
    assert [len(block.tables) for block in alignment.blocks] == [1, 0, 1, 0]
    assert not [section for section in sections((runs_by_hand.gradients(),)) if section.name == "alignment"]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e300, 1e-300])
def test_hard_readings_have_a_figure_or_a_reason(value: float) -> None:
    found = record()
    table = np.full_like(found.gram, value)
    with np.errstate(all="ignore"):
        hard = found.replace(gram=table, layer_grams=np.full_like(found.layer_grams, value))
        for draw in DRAW:
            try:
                drawn(draw(hard))
            except ValueError as error:
                assert "needs" in str(error)  # noqa: PT017
        sections((hard,))


def test_a_record_without_what_is_drawn_is_refused() -> None:
    plain = runs_by_hand.gradients()
    for draw in DRAW:
        with pytest.raises(ValueError, match=r"gradients\(problem, gram=True"):
            draw(plain)
    with pytest.raises(ValueError, match="two groups or more; found 1"):
        conflicts(record(groups=("all",)))


def task_record() -> TaskGradients:
    """Three tasks in two layers: the first two oppose each other in the first, all agree in the second."""
    opposed = np.array([[1.0, -0.8, 0.1], [-0.8, 1.0, 0.1], [0.1, 0.1, 1.0]])
    agreeing = np.full((3, 3), 0.3) + 0.7 * np.eye(3)
    layers = np.stack([3 * opposed, agreeing])
    small = np.full((2, 3, 3), 0.05)
    return TaskGradients(
        tasks=("digit", "parity", "size"),
        losses=np.ones(3),
        loss_stderrs=np.full(3, 0.1),
        dots=layers.sum(0),
        unbiased=layers.sum(0),
        unbiased_stderrs=np.full((3, 3), 0.07),
        norm_stderrs=np.full(3, 0.05),
        cosine_stderrs=np.full((3, 3), 0.05),
        layers=("first", "second"),
        layer_dots=layers,
        layer_unbiased=layers,
        layer_unbiased_stderrs=small,
        layer_cosine_stderrs=small,
        samples=np.full(3, 64),
        shared=100,
        size=120,
        cost=Cost(),
    )


def test_tasks_are_drawn_like_groups() -> None:
    found = task_record()
    figure = conflicts(found)
    (cells,) = figure.panels[0].marks
    assert figure.name == "task-conflicts"
    assert figure.panels[0].y.names == ("whole", "first", "second")
    assert cells.marked[:, 0].tolist() == [True, True, False]
    assert not cells.marked[:, 1:].any()
    (section,) = sections([found])
    (block,) = section.blocks
    assert [row[:2] for row in block.tables[0].rows] == [
        ("digit · parity", "conflict"),
        ("digit · size", "—"),
        ("parity · size", "—"),
    ]
