"""How fast the landscape around the parameters settles as samples are added."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.landscapes.directions import flat_parameters, length
from theodolite.landscapes.readings import at_parameters
from theodolite.problem import Chunk, Point, Problem
from theodolite.records import Cost, SampleConvergence

SIZES = 24


def sample_convergence(
    problem: Problem,
    *,
    points: int = 8,
    radius: float | None = None,
    orders: int = 100,
    seed: int = 0,
    step: int | None = None,
) -> SampleConvergence:
    """Losses of single samples at θ and around it, and how their mean changes with each sample that is added.

    ``record.sufficient(tol)`` says how many samples a landscape needs; ``record.change(k)`` and ``record.error(k)`` are exact in
    the mean over orders and need none drawn; what is read in random orders stands beside them.

    Cost: 1 + points forward passes; the losses of all samples at all places are held in memory.

    Args:
        problem: whose samples have losses of their own.
        points: in random directions around θ.
        radius: their distance, a tenth of ‖θ‖ by default.
        orders: of the samples, drawn at random.
        seed: of directions and orders.
        step: optimiser step, kept in the record.

    Returns:
        Spreads with errors over samples, and changes with errors over orders.

    Raises:
        ProblemError: samples depend on each other, or there are fewer than two, a negative number of points or no order.
        NonFiniteError: the loss of a sample is not finite.

    Example:
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(torch.randn(40, 3), torch.randn(40, 1))])
        >>> found = sample_convergence(problem)
        >>> found.change(40).value < found.bound(40)
        True

    References:
        Kiselev & Grabovoy, "Unraveling the Hessian: a key to smooth convergence in loss function landscapes" (2024).
    """
    started = time.perf_counter()
    if points < 0 or orders < 1:
        raise ProblemError(f"Expected no negative number of points and at least 1 order, found {points} and {orders}.")
    if problem.coupled:
        raise ProblemError(
            "Expected samples with losses of their own, found BatchNorm on batch statistics or a criterion of whole batches, which "
            "mix them. Use mode='eval', or a criterion that takes samples one by one."
        )
    theta = flat_parameters(problem)
    away = 0.1 * length(theta) if radius is None else radius
    losses = [sample_losses(problem, problem.point())]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(points):
        direction = torch.randn(problem.n, generator=generator, dtype=torch.float64)
        direction *= away / direction.norm()
        losses.append(sample_losses(problem, at_parameters(problem, theta + direction.to(theta))))
    table = np.stack(losses)
    _refuse(table)
    rises = table[1:] - table[0]
    count = table.shape[1]
    sizes = np.unique(np.geomspace(1, count - 1, SIZES).round().astype(np.int64))
    changes = _changes(table, sizes, orders=orders, seed=seed)
    return SampleConvergence(
        step=step,
        radius=away,
        samples=count,
        spreads=table.std(axis=1, ddof=1),
        spread_stderrs=_spread_stderrs(table),
        rise_spreads=rises.std(axis=1, ddof=1),
        rise_spread_stderrs=_spread_stderrs(rises),
        ranges=np.ptp(table, axis=1),
        largest=float(np.abs(table[0]).max()),
        sizes=sizes,
        changes=changes.mean(axis=0),
        change_stderrs=changes.std(axis=0, ddof=1) / np.sqrt(orders) if orders > 1 else np.full(sizes.size, np.nan),
        orders=orders,
        cost=Cost(forwards=1.0 + points, seconds=time.perf_counter() - started),
        seed=seed,
        context=problem.context(),
    )


def sample_losses(problem: Problem, point: Point) -> Float[np.ndarray, " b"]:
    """The loss of each sample in the order of the data, scaled so that their mean is the loss of the problem.

    Cost: one forward pass.
    """

    def shares(model: nn.Module, chunk: Chunk) -> Float[Tensor, " b"]:
        with torch.no_grad():
            return problem.objective.shares(model, chunk.batch).detach().to("cpu", torch.float64)

    found, weights = [], []
    for chunk in problem.chunks():
        found.append(problem.call(partial(shares, chunk=chunk), point, chunk=chunk.index))
        weights.append(problem.evaluate(chunk, point, grad=False)[1] if problem.objective.averages() else 0.0)
    each = torch.cat(found)
    each = each * (len(each) / problem.total_weight(torch.tensor(weights, dtype=torch.float64)))
    return np.asarray(each.numpy())


def _refuse(losses: Float[np.ndarray, "m b"]) -> None:
    if losses.shape[1] < 2:
        raise ProblemError(
            f"Expected at least 2 samples, to see how the loss changes with them, found {losses.shape[1]}."
        )
    if not np.isfinite(losses).all():
        places, samples = np.nonzero(~np.isfinite(losses))
        raise NonFiniteError(
            f"Expected finite losses of all samples, found {losses[places[0], samples[0]]} for sample {samples[0]} at "
            f"{'θ' if places[0] == 0 else f'point {places[0]}'}, and {len(places) - 1} others. Use a smaller radius."
        )


def _spread_stderrs(losses: Float[np.ndarray, "m b"]) -> Float[np.ndarray, " m"]:
    """Of a standard deviation S: √((m₄ − S⁴)/N)/(2S)."""
    centred = losses - losses.mean(axis=1, keepdims=True)
    squares = np.square(centred).mean(axis=1)
    fourth = (centred**4).mean(axis=1)
    errors = np.sqrt(np.maximum(fourth - squares**2, 0.0) / losses.shape[1])
    return np.asarray(np.divide(errors, 2 * np.sqrt(squares), out=np.zeros_like(errors), where=squares > 0))


def _changes(
    losses: Float[np.ndarray, "m b"], sizes: Int[np.ndarray, " a"], *, orders: int, seed: int
) -> Float[np.ndarray, "o a"]:
    """|L_{k+1} − L_k| in each random order, averaged over places."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(orders):
        shuffled = losses[:, rng.permutation(losses.shape[1])]
        means = np.cumsum(shuffled, axis=1)[:, sizes - 1] / sizes
        found.append(np.abs((shuffled[:, sizes] - means) / (sizes + 1)).mean(axis=0))
    return np.stack(found)
