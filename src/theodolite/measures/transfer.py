"""Train models of several sizes alike and read their sharpness at the same steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.measures.stability import stability_and_vectors
from theodolite.problem import Problem
from theodolite.problem.arguments import real, several, whole
from theodolite.records import Cost, Stability, Transfer

Make = Callable[[int, float], tuple[Problem, Optimizer]]
Train = Callable[[Problem, Optimizer, int], None]


def transfer(
    make: Make,
    *,
    sizes: Sequence[int],
    learning_rates: Sequence[float],
    steps: Sequence[int],
    train: Train | None = None,
    axis: str = "width",
    tol: float = 1e-2,
    seed: int = 0,
) -> Transfer:
    """Whether sharpness and the best learning rate stay the same over widths or depths, at equal steps.

    Where the dimensionless sharpness (learning rate times λ₁) does not depend on the size along training, the learning rate
    that suits a small model suits a large one. It does so under μP and not under the usual parametrisation.

    Cost: ``len(sizes)·len(learning_rates)`` runs, and one stability measurement at each of their steps.

    Args:
        make: from size and learning rate to a fresh problem and the optimiser of its model: where the parametrisation is
            chosen. Seed the initialisation inside it.
        sizes: widths or depths.
        learning_rates: on a grid, for the best of each size; one is enough for the consistency of the sharpness.
        steps: steps at which to read, ascending; 0 is before the first.
        train: takes problem, optimiser and a number of steps, and trains that many; by default full-batch steps on the data of
            the problem.
        axis: what the sizes are, for the record.
        tol: relative residual of each sharpness.
        seed: of the start vectors.

    Returns:
        A record; runs that diverge are readings.

    Raises:
        ProblemError: there is no size, rate or step, they are no sequences of numbers, steps do not ascend, or ``make``
            returns something else.

    Example:
        >>> from torch import nn
        >>> data = [(torch.randn(16, 4), torch.randn(16, 1))]
        >>> def make(width: int, rate: float) -> tuple[Problem, Optimizer]:
        ...     model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        ...     return Problem(model, nn.MSELoss(), data), torch.optim.SGD(model.parameters(), lr=rate)
        >>> transfer(make, sizes=(4, 8), learning_rates=(0.1,), steps=(0, 3)).losses.shape
        (2, 1, 2)

    References:
        Noci, Meterez, Hofmann & Orvieto, "Super consistency of neural network landscapes and learning rate transfer" (2024).
        Yang & Hu, "Tensor programs IV: feature learning in infinite-width neural networks" (2021).
    """
    started = time.perf_counter()
    several(whole, sizes=sizes, steps=steps)
    several(real, learning_rates=learning_rates)
    real(tol=tol)
    if not len(sizes) or not len(learning_rates) or not len(steps) or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ProblemError(
            f"Expected sizes, learning rates, and ascending steps from 0 on, found sizes={tuple(sizes)}, "
            f"learning_rates={tuple(learning_rates)}, steps={tuple(steps)}."
        )
    runs = [
        [_run(*_made(make, size, rate), steps, train or _full_batch, tol=tol, seed=seed) for rate in learning_rates]
        for size in sizes
    ]

    def table(field: str) -> np.ndarray:
        return np.array(
            [[[getattr(reading, field) for reading in run] for run in of_size] for of_size in runs], dtype=float
        )

    readings = [reading for of_size in runs for run in of_size for reading in run]
    first = readings[0]
    spent = sum((reading.cost for reading in readings), Cost())
    return Transfer(
        cost=Cost(products=spent.products, gradients=spent.gradients, seconds=time.perf_counter() - started),
        seed=seed,
        notes=("products and gradients are those of the readings, training not counted",),
        context={
            key: first.context[key] for key in ("samples", "mode", "dtype", "device", "torch") if key in first.context
        },
        axis=axis,
        sizes=np.array(sizes, dtype=np.int64),
        learning_rates=np.array(learning_rates, dtype=np.float64),
        steps=np.array(steps, dtype=np.int64),
        losses=table("loss"),
        sharpnesses=table("sharpness"),
        sharpness_stderrs=table("sharpness_stderr"),
        ratios=table("ratio"),
        converged=all(reading.converged or np.isnan(reading.sharpness) for reading in readings),
    )


def _made(make: Make, size: int, rate: float) -> tuple[Problem, Optimizer]:
    """What ``make`` returns, if it is what the docstring asks for."""
    match made := make(size, rate):
        case (Problem(), Optimizer()):
            return made
    raise ProblemError(
        f"Expected make({size}, {rate:g}) to return a problem and the optimiser of its model, found a {type(made).__name__}. "
        "Return Problem(model, criterion, batches), optimizer."
    )


def _run(
    problem: Problem, optimizer: Optimizer, steps: Sequence[int], train: Train, *, tol: float, seed: int
) -> list[Stability]:
    """Readings at each of the steps, each search started from the last eigenvector."""
    readings: list[Stability] = []
    start: Tensor | None = None
    done = 0
    for step in steps:
        if step > done:
            train(problem, optimizer, step - done)
            done = step
        reading, vectors = stability_and_vectors(
            problem, optimizer, tol=tol, seed=seed, start=start, max_products=200, step=step
        )
        start = start if vectors is None else vectors
        readings.append(reading)
    return readings


def _full_batch(problem: Problem, optimizer: Optimizer, steps: int) -> None:
    """Steps on the gradient of all data; a run that has left the finite numbers takes none."""
    named = dict(problem.model.named_parameters())
    for _ in range(steps):
        try:
            gradient = problem.gradient()
        except NonFiniteError:
            break
        for name, part in zip(problem.layout.names, problem.layout.unflatten(gradient), strict=True):
            named[name].grad = part.to(named[name]).clone()
        optimizer.step()
    optimizer.zero_grad()
