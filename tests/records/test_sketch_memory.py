"""The errors of the alignment of steps against the scatter over draws of the data."""

from __future__ import annotations

import numpy as np
import pytest

from theodolite.records import GradientSketch, SketchMemory
from theodolite.records.sketch_memory import StepAlignment

SAMPLES, SIZE = 24, 12


def record(rows: np.ndarray, indices: np.ndarray | None = None, step: int = 0) -> GradientSketch:
    """A step whose sketches are the gradients themselves, so that nothing but the samples is drawn."""
    gram = rows @ rows.T
    places = np.arange(len(rows)) if indices is None else indices
    return GradientSketch(
        gram=gram,
        stderrs=0 * gram,
        sketches=rows[:, None],
        indices=places,
        ranks=0 * places,
        seed=0,
        size=SIZE,
        step=step,
    )


def aligned(*records: GradientSketch) -> StepAlignment:
    memory = SketchMemory()
    for one in records:
        memory.add(one)
    return memory.alignment()


def drawn(seed: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of samples at two steps, whose noise is the same in the given share."""
    generator = np.random.default_rng(seed)
    common, *others = generator.standard_normal((3, SAMPLES, SIZE))
    means = np.zeros((2, SIZE))
    means[0, 0], means[1, :2] = 2.0, (1.5, 1.0)
    first, second = (
        mean + np.sqrt(shared) * common + np.sqrt(1 - shared) * own for mean, own in zip(means, others, strict=True)
    )
    return first, second


@pytest.mark.parametrize("shared", [0.95, 0.0])
def test_errors_of_the_same_samples_at_both_steps_are_the_scatter_over_draws(shared: float) -> None:
    found = [aligned(*map(record, drawn(seed, shared))) for seed in range(400)]
    scatter = np.std([one.cosines[0, 1] for one in found], ddof=1)  # known to 3.5 %
    stated = np.sqrt(np.mean([one.data_stderrs[0, 1] ** 2 for one in found]))
    assert stated == pytest.approx(scatter, rel=0.15)


def test_samples_drawn_apart_have_larger_errors_than_the_same_samples() -> None:
    first, second = drawn(0, 0.95)
    paired = aligned(record(first), record(second)).data_stderrs[0, 1]
    apart = aligned(record(first), record(second, np.arange(SAMPLES) + SAMPLES)).data_stderrs[0, 1]
    assert paired < 0.6 * apart


def test_the_order_of_samples_does_not_matter_and_the_error_is_that_of_leaving_each_out() -> None:
    first, second = drawn(1, 0.5)
    order = np.random.default_rng(0).permutation(SAMPLES)
    found = aligned(record(first), record(second[order], order))
    without = []
    for left in range(SAMPLES):
        a, b = (np.delete(rows, left, axis=0).mean(axis=0) for rows in (first, second))
        without.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.data_stderrs[0, 1] == pytest.approx(np.sqrt((SAMPLES - 1) * np.var(without)), rel=1e-9)
    assert found.data_stderrs[1, 0] == found.data_stderrs[0, 1]


def test_one_step_seen_twice_has_a_cosine_of_one_without_error() -> None:
    first, _ = drawn(2, 0.5)
    assert aligned(record(first), record(first)).data_stderrs[0, 1] == pytest.approx(0, abs=1e-7)


def test_a_sample_that_one_step_lacks_leaves_the_steps_drawn_apart() -> None:
    first, second = drawn(3, 0.95)
    broken = second.copy()
    broken[5] = np.nan
    apart = aligned(record(first), record(second[np.arange(SAMPLES) != 5], np.delete(np.arange(SAMPLES), 5)))
    np.testing.assert_allclose(aligned(record(first), record(broken)).data_stderrs, apart.data_stderrs, rtol=1e-12)
