"""Losses along a line through the parameters."""

from __future__ import annotations

import time

import numpy as np

from theodolite.landscapes.directions import Direction, flat_parameters, length, named_direction
from theodolite.landscapes.grids import Span, positions
from theodolite.landscapes.readings import OnPoint, read, read_grid, stderrs
from theodolite.landscapes.remarks import context, cost, kept, remarks
from theodolite.problem import Problem
from theodolite.records import Line

KEEP = 256 << 20  # bytes


def line(
    problem: Problem,
    *,
    direction: Direction = "filter",
    points: int = 51,
    span: Span = (-1.0, 1.0),
    seed: int = 0,
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Line:
    """Losses L(θ + α·d) on the same samples at every point.

    The model is not written to: every point starts from θ, in place of the parameters. α = 0 is among the positions
    where the span contains it, and its loss is that of θ, bit for bit. BatchNorm uses the statistics that the mode of
    the problem says, stored ones by default.

    Cost: one forward pass a point, one more where the span does not contain 0; what a measured direction costs.

    Args:
        problem: what is surveyed.
        direction: ``"filter"`` (Gaussian with the norms of the model's filters; biases and norm weights stay) or another name
            that ``directions.named_direction`` knows (``"gaussian"``, ``"gradient"``, ``"hessian"``, …); or a vector of n numbers
            in the order of ``named_parameters()``, used as it is, bare or as ``{name: vector}``.
        points: number of positions, evenly spaced on each side of 0.
        span: first and last position, in units of d.
        seed: of a random direction or of Lanczos.
        keep_directions_below: bytes up to which the record keeps d; 256 MiB by default.
        on_point: called after every point with the number done and the number of all.
        step: optimiser step, kept in the record.

    Returns:
        Positions, losses, and standard errors of their rise above the centre from the data.

    Raises:
        ProblemError: a direction of another length or of zeros, a span that does not increase, too few points.
        NonFiniteError: parameters or direction are not finite. Losses that are not finite are readings.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)])
        >>> line(problem, points=5).alphas.tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]

    References:
        Goodfellow, Vinyals & Saxe, "Qualitatively characterizing neural network optimization problems" (2015); Li, Xu,
        Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    started = time.perf_counter()
    parameters = flat_parameters(problem)
    alphas = positions(points, span)
    named = named_direction(problem, direction, seed=seed)
    (vector,) = named.vectors
    center = read(problem, problem.point())
    readings = read_grid(problem, alphas[:, None], [vector], center=center, on_point=on_point)
    losses = np.array([reading.loss for reading in readings])
    directions, dropped = kept([vector], below=keep_directions_below)
    return Line(
        step=step,
        alphas=alphas,
        losses=losses,
        stderrs=stderrs(readings, center=center),
        direction=None if directions is None else directions[0],
        direction_norm=length(vector),
        name=named.name,
        parameter_norm=length(parameters),
        cost=named.cost + cost([*readings, center], started=started),
        seed=seed if named.random else None,
        notes=(*named.notes, *remarks(readings, center), *dropped),
        context=context(problem, name=named.name, center=center),
    )
