"""Dot products from sketches lie within their stated errors, on two ranks and over steps, and are exact where they say so."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distributed.worker import on_two_ranks
from measures.sketches_on_ranks import SIZES, data, network, on_rank
from theodolite.errors import OperatorError, ProblemError
from theodolite.measures import gradient_sketch, gradients
from theodolite.problem import Problem
from theodolite.records import GradientSketch, Log, SketchMemory, differences, read

COUNT = sum(SIZES)


@functools.cache
def problem() -> Problem:
    return Problem(network(), nn.CrossEntropyLoss(), data())


@functools.cache
def truth() -> np.ndarray:
    gram = gradients(problem(), gram=True).gram
    assert gram is not None
    return gram


@functools.cache
def ranks() -> list[Any]:
    return on_two_ranks(on_rank)


def errors_over_stderrs(grams: np.ndarray, stderrs: np.ndarray) -> np.ndarray:
    """Errors of the entries above the diagonal that are not exact, in their standard errors."""
    sketched = np.triu(stderrs[0] > 0, k=1)
    return np.asarray((grams - truth())[:, sketched] / stderrs[:, sketched])


# --------------------------------------------------------------------------------------------------------- one process


def test_within_a_rank_all_is_exact_and_reads_as_gradients_do() -> None:
    found, whole = gradient_sketch(problem(), size=32, seed=1), gradients(problem(), gram=True)
    assert found.exact.all()
    np.testing.assert_allclose(found.gram, truth(), rtol=1e-10, atol=1e-14)
    assert found.agreement != found.agreement  # nothing is sketched
    for name in ("mean_square", "signal_square", "covariance_trace", "noise_scale", "mean_cosine"):
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert ours.value == pytest.approx(theirs.value, rel=1e-9)
        assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-9, nan_ok=True)


def test_between_chunks_errors_are_the_stated_ones() -> None:
    """64 independent repeats of one record scatter as it states."""
    record = gradient_sketch(problem(), size=64, repeats=64, exact=False)
    blocks = np.equal.outer(*[np.repeat(np.arange(4), SIZES)] * 2)
    assert (record.exact == blocks).all()
    np.testing.assert_allclose(record.gram[blocks], truth()[blocks], rtol=1e-10, atol=1e-14)
    sketched = np.triu(~blocks, k=1)
    each = np.einsum("ird,jrd->rij", record.sketches, record.sketches)[:, sketched] - truth()[sketched]
    ratios = each / (8 * record.stderrs[sketched])
    # The stated error is an upper bound by what Σ x_j²y_j² leaves out.
    assert 0.85 < np.sqrt(np.square(ratios).mean()) < 1.02
    assert np.abs(ratios.mean(axis=0)).max() < 4 / 8
    assert 0.85 < record.agreement < 1.02
    assert "dot products exact | cosines to ± 0.0" in repr(record)


def test_readings_carry_the_error_of_the_sketch() -> None:
    """The mean square over groups of repeats scatters about the exact one as a record of one group states."""
    exact = gradients(problem(), gram=True).mean_square
    whole = gradient_sketch(problem(), size=8, repeats=160, exact=False)
    found = []
    for start in range(0, 160, 4):
        sketches = whole.sketches[:, start : start + 4]
        products = np.einsum("ird,jrd->ij", sketches, sketches) / 4
        gram = np.where(whole.exact, whole.gram, products)
        found.append(whole.replace(sketches=sketches, gram=gram, stderrs=whole.stderrs * np.sqrt(40)).mean_square)
    scatter = np.array([reading.value for reading in found])
    assert abs(scatter.mean() - exact.value) < 4 * scatter.std(ddof=1) / np.sqrt(40)
    stated = np.sqrt(np.mean([reading.stderr**2 for reading in found]))
    assert stated > 0.8 * np.hypot(scatter.std(ddof=1), exact.stderr)
    assert all(1 <= (reading.degrees or 0) <= COUNT - 1 + 3 for reading in found)


def test_a_draw_a_sample_without_gradient_and_a_log(tmp_path: Path) -> None:
    drawn = gradient_sketch(problem(), size=16, samples=6, seed=2, exact=False)
    full = truth()[np.ix_(drawn.indices, drawn.indices)]
    np.testing.assert_allclose(drawn.gram[drawn.exact], full[drawn.exact], rtol=1e-10, atol=1e-14)
    assert drawn.notes == ("6 samples drawn from 14",)
    inputs, targets = data()[0]
    inputs[1] = np.nan
    broken = gradient_sketch(Problem(network(), nn.CrossEntropyLoss(), [(inputs, targets), data()[1]]), size=16)
    assert (~broken.finite).nonzero()[0].tolist() == [1]
    assert np.isfinite(broken.noise_scale.value)
    assert "NOT finite for 1 of 8" in broken.notes[0]
    with Log(tmp_path) as log:
        log.append(broken)
    (again,) = read(tmp_path).records
    assert not differences(broken, again, ignore={"context"})
    assert again.agreement != again.agreement
    assert not differences(drawn, gradient_sketch(problem(), size=16, samples=6, seed=2, exact=False), ignore={"cost"})


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ProblemError, match="at least 2 samples for dot products of their gradients, found samples=1"):
        gradient_sketch(problem(), samples=1)
    with pytest.raises(ProblemError, match="found size=0, repeats=4"):
        gradient_sketch(problem(), size=0)
    with pytest.raises(OperatorError, match="Expected sketches of 14 samples and their Gram matrix to fit"):
        gradient_sketch(problem().replace(memory=1000))
    coupled = Problem(
        nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 4)).double(), nn.CrossEntropyLoss(), data(), mode="train"
    )
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        gradient_sketch(coupled)


# ------------------------------------------------------------------------------------------------------------ two ranks


def test_two_ranks_are_exact_each_and_within_their_errors_together() -> None:
    first, second = ranks()
    own = np.equal.outer(*[np.repeat([0, 1], (8, 6))] * 2)
    grams, stderrs = first["grams"].numpy(), first["stderrs"].numpy()
    assert torch.equal(first["grams"], second["grams"])  # the same record on both
    assert first["ranks"].tolist() == [0] * 8 + [1] * 6
    assert first["indices"].tolist() == [*range(8), *range(6)]
    assert ((stderrs == 0) == own).all()
    np.testing.assert_allclose(grams[:, own], np.broadcast_to(truth()[own], (4, own.sum())), rtol=1e-10, atol=1e-14)
    ratios = errors_over_stderrs(grams, stderrs)
    assert 0.7 < np.sqrt(np.square(ratios).mean()) < 1.1
    assert np.abs(ratios).max() < 5
    assert 0.6 < float(first["agreement"].mean()) < 1.1
    exact = gradients(problem(), gram=True).covariance_trace
    value, stderr = first["covariance trace"].tolist()
    assert 0 < abs(value - exact.value) < 4 * stderr


def test_ranks_with_several_chunks_draws_and_mistakes() -> None:
    first, second = ranks()
    blocks = np.equal.outer(*[np.repeat([0, 1, 2], (5, 3, 6))] * 2)
    assert (first["exact without more passes"].numpy() == blocks).all()
    assert first["drawn"].shape == (2, 9)  # each rank rounds its share up
    assert first["drawn"][0].tolist() == [0] * 5 + [1] * 4
    assert (first["alone"], second["alone"]) == (8, 6)
    for rank in (first, second):
        assert "Expected the size of sketches to be equal on all ranks" in rank["other sizes"]


# ------------------------------------------------------------------------------------------------------------ over steps


@functools.cache
def sketches_at(weights: tuple[float, ...], repeats: int = 4, seed: int = 0) -> tuple[GradientSketch, ...]:
    """The first or last two batches at several points on a line through the parameters."""
    found = []
    for step, weight in enumerate(weights):
        model = network()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(weight)
        batches = [tuple(map(torch.cat, zip(*data()[2 * (step % 2) :][:2], strict=True)))]
        here = Problem(model, nn.CrossEntropyLoss(), batches)
        found.append(gradient_sketch(here, size=64, repeats=repeats, seed=seed, step=10 * step))
    return tuple(found)


def true_cosines(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines between mean gradients, with errors by leaving out a sample of both steps where they have as many, else of one."""
    rows = []
    for step, weight in enumerate(weights):
        model = network()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(weight)
        samples = [(x[None], y[None]) for batch in data()[2 * (step % 2) :][:2] for x, y in zip(*batch, strict=True)]
        rows.append(torch.stack([Problem(model, nn.CrossEntropyLoss(), [one]).gradient() for one in samples]).numpy())

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.mean(0) @ b.mean(0) / np.linalg.norm(a.mean(0)) / np.linalg.norm(b.mean(0)))

    def spread(a: np.ndarray, b: np.ndarray) -> float:
        left = [cosine(np.delete(a, i, axis=0), b) for i in range(len(a))]
        return (len(a) - 1) * float(np.var(left))

    def square(a: np.ndarray, b: np.ndarray) -> float:
        if len(a) != len(b):
            return spread(a, b) + spread(b, a)
        left = [cosine(np.delete(a, i, axis=0), np.delete(b, i, axis=0)) for i in range(len(a))]
        return (len(a) - 1) * float(np.var(left))

    cosines = np.array([[cosine(a, b) for b in rows] for a in rows])
    errors = np.sqrt([[square(a, b) if a is not b else 0.0 for b in rows] for a in rows])
    return cosines, errors


def test_steps_align_within_the_error_of_the_sketch() -> None:
    weights = (1.0, 0.3, -1.0)
    cosines, of_data = true_cosines(weights)
    above = np.triu_indices(3, k=1)
    ratios, whole = [], SketchMemory()
    for record in sketches_at(weights, repeats=60):
        whole.add(record)
    np.testing.assert_allclose(whole.alignment().data_stderrs, of_data, rtol=0.12)  # 5 % over seeds
    for start in range(0, 60, 4):  # groups of repeats, as independent as seeds
        memory = SketchMemory()
        for record in sketches_at(weights, repeats=60):
            memory.add(record.replace(sketches=record.sketches[:, start : start + 4]))
        found = memory.alignment()
        assert found.steps == ("step 0", "step 10", "step 20")
        np.testing.assert_allclose(np.diagonal(found.cosines), 1)
        ratios.append((found.cosines - cosines)[above] / found.sketch_stderrs[above])
        assert (found.data_stderrs[above] > 0.5 * of_data[above]).all()
        assert found.between(-1, 0).stderr == pytest.approx(
            np.hypot(found.sketch_stderrs[0, 2], found.data_stderrs[0, 2])
        )
        assert (found.sketch_stderrs[above] < np.sqrt(2.1 / 256)).all()
    assert 0.5 < np.sqrt(np.square(ratios).mean()) < 1.3


def test_a_memory_forgets_and_refuses_other_maps() -> None:
    first, second, third = sketches_at((1.0, 0.3, -1.0))
    memory = SketchMemory(capacity=2)
    with pytest.raises(ValueError, match="Expected sketches of at least one step, found none"):
        memory.alignment()
    for record in (first, second, third):
        memory.add(record)
    assert len(memory) == 2
    assert memory.alignment().steps == ("step 10", "step 20")
    with pytest.raises(ValueError, match="found the seed to be 1 where the steps before have 0"):
        memory.add(sketches_at((1.0,), seed=1)[0])
    with pytest.raises(ValueError, match="found the number of repeats and the size to be"):
        memory.add(gradient_sketch(problem(), size=16))
    with pytest.raises(ValueError, match="found the number of parameters to be"):
        memory.add(gradient_sketch(problem().select("0.*"), size=64))
    with pytest.raises(ValueError, match="capacity of at least one step"):
        SketchMemory(capacity=0)
