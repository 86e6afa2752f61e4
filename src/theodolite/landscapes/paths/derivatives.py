"""The barrier of a straight path, predicted from its two ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from theodolite.landscapes.paths.traveller import State, Traveller, as_reading
from theodolite.landscapes.reading import Reading
from theodolite.problem import Chunk, Point, Problem
from theodolite.records.jackknife import jackknife_stderr


@dataclass(frozen=True)
class Slopes:
    """First and second derivative of the loss along a line, as readings on the same chunks."""

    first: Reading
    second: Reading


def predicted_deviations(
    traveller: Traveller, start: State, end: State, ts: Float[np.ndarray, " a"]
) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " a"]]:
    """Deviation from the chord that the quadratic models at both ends predict, and its standard error from the data.

    B̂(t) = t(1−t){φ′(0) − φ′(1) + ½[t φ″(0) + (1−t) φ″(1)]}, where φ is the loss along the line, with interpolated
    statistics of BatchNorm. It is exact where φ is a quadratic, and (1/8) ΔᵀHΔ at ½ between two minima.

    Cost: 2 gradients and 2 products.

    Args:
        traveller: moved to both ends.
        start: at t = 0.
        end: at t = 1.
        ts: positions from 0 to 1.

    Returns:
        Predictions and standard errors, NaN with a single chunk.
    """
    slopes = [slopes_at(traveller, start, end, at=at) for at in (0.0, 1.0)]
    weights = slopes[0].first.weights
    whole = _predicted([(each.first.loss, each.second.loss) for each in slopes], ts)
    left_out = _predicted([(each.first.left_out, each.second.left_out) for each in slopes], ts)
    return whole, jackknife_stderr(left_out, whole=whole, weights=weights)


def slopes_at(traveller: Traveller, start: State, end: State, *, at: float) -> Slopes:
    """φ′ and φ″ at one end of the line.

    Cost: 1 gradient and 1 product.

    Args:
        traveller: moved to the end.
        start: φ(0).
        end: φ(1).
        at: 0 or 1.
    """
    traveller.go(end if at else start)
    problem = traveller.problem
    with problem.session(), problem.together("derivatives along a path"):
        rows = [_of_chunk(problem, chunk, start, end, at) for chunk in problem.chunks()]
    joined = problem.ranks.join(torch.tensor(rows, dtype=torch.float64))
    firsts, seconds, weights = joined.unbind(1)
    return Slopes(as_reading(problem, firsts, weights), as_reading(problem, seconds, weights))


def _of_chunk(problem: Problem, chunk: Chunk, start: State, end: State, at: float) -> tuple[float, float, float]:
    here = problem.point()
    t = torch.zeros((), dtype=problem.dtype, device=problem.device, requires_grad=True)

    def moved(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value.detach() + (t * (end[name] - start[name])).to(value.dtype)

    named = zip(problem.layout.names, here.leaves, strict=True)
    point = Point(
        tuple(moved(name, leaf) for name, leaf in named),
        {name: moved(name, value) for name, value in here.constants.items()},
        here.buffers,
        here.version,
    )
    buffers = {name: moved(name, value.clone()) for name, value in here.buffers.items()}
    weight, first, second = problem.call(
        lambda model: _differentiated(problem, model, chunk, t), point, chunk=chunk.index, buffers=buffers
    )
    return float(first), float(second), weight


def _differentiated(problem: Problem, model: torch.nn.Module, chunk: Chunk, t: Tensor) -> tuple[float, Tensor, Tensor]:
    """Weight, and derivatives of the total in t, zero where it does not depend on it."""
    with _PlainBatchNorm():
        total, weight = problem.objective.evaluate(model, chunk.batch)
    zero = torch.zeros_like(t).detach()
    if not total.requires_grad:
        return weight, zero, zero
    (first,) = torch.autograd.grad(total, t, create_graph=True, materialize_grads=True)
    second = zero
    if first.requires_grad:
        (second,) = torch.autograd.grad(first, t, materialize_grads=True)
    return weight, first.detach(), second.detach()


def _predicted(
    slopes: list[tuple[float, float]] | list[tuple[np.ndarray, np.ndarray]], ts: Float[np.ndarray, " a"]
) -> Float[np.ndarray, "*c a"]:
    (first, second), (last, second_last) = [(np.asarray(a)[..., None], np.asarray(b)[..., None]) for a, b in slopes]
    with np.errstate(invalid="ignore"):
        return np.asarray(ts * (1 - ts) * (first - last + 0.5 * (ts * second + (1 - ts) * second_last)))


class _PlainBatchNorm(TorchFunctionMode):
    """Spells normalisation by stored statistics out: torch's own has no derivative in the statistics.

    Where a layer normalises by its batch the stored ones are no part of the loss, and torch refuses to update them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        if func is F.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)
    shape = (1, -1, *(1,) * (input.dim() - 2))
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    return input * scale.view(shape) + shift.view(shape)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats:
        return F.instance_norm(input, None, None, weight, bias, True, momentum, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
