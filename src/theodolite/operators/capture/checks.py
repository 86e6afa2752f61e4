"""Two checks that share nothing with the interception: do the parts add up, and what do two samples give alone?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.operators.capture.captured import Captured
from theodolite.operators.capture.learning import tolerance_of
from theodolite.operators.capture.passes import plain_checkpoints
from theodolite.operators.capture.tally import Reading
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import piece


def check(captured: Captured, readings: Mapping[str, Reading]) -> bool:
    """Compare what was captured with gradients by plain autograd, and leave to the fallback what does not agree.

    Cost: a forward and backward pass of the chunk, and of two samples.

    Returns:
        Whether all agree; if not, the parameters that do not are in ``captured.known.lost``.

    Raises:
        OperatorError: gradients from the fallback do not agree either: the samples are coupled.
    """
    problem, chunk, point, known = captured.problem, captured.chunk, captured.point, captured.known
    whole = _gradients(problem, chunk, point)
    singles = [piece(chunk.batch, index, index + 1) for index in (0, captured.samples - 1)]
    alone = [_gradients(problem, replace(chunk, batch=batch, samples=1), point) for batch in singles]
    tolerance = tolerance_of(problem.dtype)
    floor = _floor([whole, *alone], problem.dtype)
    wrong = set()
    worst = 0.0
    for name, gradient in whole.items():
        reading = readings.get(name, _NOTHING)
        squared = float(gradient.double().square().sum())
        known.coverage[name] = 1.0 if max(squared, reading.total) <= floor else _ratio(reading.total, squared)
        deviation = 0.0
        if problem.mode == "eval":  # dropout has other masks for a sample alone
            pair = torch.stack([part[name].reshape(-1).double() for part in alone])
            expected = (pair @ pair.T).cpu()
            deviation = float((reading.corners - expected).norm()) / max(float(expected.norm()), floor)
        worst = max(worst, deviation)
        if abs(known.coverage[name] - 1) > 10 * tolerance or deviation > 10 * tolerance:
            wrong.add(name)
    known.calibration = worst
    _refuse_coupled(wrong & known.lost, known.coverage)
    known.lost |= wrong
    return not wrong


_NOTHING = Reading(0.0, torch.zeros(2, 2, dtype=torch.float64))


def _gradients(problem: Problem, chunk: Chunk, point: Point) -> dict[str, Tensor]:
    with plain_checkpoints():
        total, _ = problem.evaluate(chunk, point)
        parts = torch.autograd.grad(total, point.leaves, materialize_grads=True)
    return dict(zip(problem.layout.names, parts, strict=True))


def _floor(gradients: list[dict[str, Tensor]], dtype: torch.dtype) -> float:
    """Squared norm below which a gradient is rounding, such as that of a bias before a softmax."""
    largest = max(sum(float(part.double().square().sum()) for part in parts.values()) for parts in gradients)
    return (1e3 * torch.finfo(dtype).eps) ** 2 * largest


def _ratio(found: float, expected: float) -> float:
    return found / expected if expected else float("inf")


def _refuse_coupled(names: set[str], coverage: Mapping[str, float]) -> None:
    if names:
        worst = max(names, key=lambda name: abs(coverage[name] - 1))
        raise OperatorError(
            "Expected a loss that is a sum over samples along the first dimension of the batch, found that the gradients of "
            f"samples taken alone do not add up to the gradient of the batch: {coverage[worst]:.4g} of its square for "
            f"{worst!r}. Something couples samples (a norm over the batch, a contrastive loss), or the first "
            "dimension does not count samples."
        )
