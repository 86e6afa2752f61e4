"""Losses along a line through the parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.asked import asked
from theodolite.landscapes.batchnorm import BatchNorm
from theodolite.landscapes.directions import Direction, flat_parameters, length, named_direction
from theodolite.landscapes.engines import settled
from theodolite.landscapes.extremes import coarse, extremes
from theodolite.landscapes.grids import Span, positions
from theodolite.landscapes.points import read_points
from theodolite.landscapes.quadratics import quadratic_model, refuse_other_statistics
from theodolite.landscapes.reading import Reading
from theodolite.landscapes.readings import OnPoint, stderrs
from theodolite.landscapes.rechecks import rechecked
from theodolite.landscapes.remarks import context, kept, remarks
from theodolite.landscapes.routes import Engine
from theodolite.landscapes.scalars import Scalars
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.arguments import whole
from theodolite.records import Cost, Line

KEEP = 256 << 20  # bytes


def line(
    problem: Problem,
    *,
    direction: Direction = "filter",
    points: int = 51,
    span: Span = (-1.0, 1.0),
    seed: int = 0,
    scalars: Scalars = (),
    groups: By | None = None,
    also: Mapping[str, Problem] | None = None,
    batchnorm: BatchNorm | None = None,
    cap: float = float("inf"),
    autocast: torch.dtype | None = None,
    engine: Engine = "loop",
    quadratic: bool = False,
    eigenvalues: int = 0,
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Line:
    """Losses L(θ + α·d) on the same samples at every point.

    The model is not written to: every point starts from θ, in place of the parameters. α = 0 is among the positions
    where the span contains it, and its loss is that of θ, bit for bit.

    Cost: one forward pass a point, one more where the span does not contain 0; what a measured direction costs.

    Args:
        problem: what is surveyed.
        direction: ``"filter"`` (Gaussian with the norms of the model's filters; biases and norm weights stay) or another name
            that ``directions.named_direction`` knows (``"gaussian"``, ``"gradient"``, ``"hessian"``, …); or a vector of n numbers
            in the order of ``named_parameters()``, used as it is, bare or as ``{name: vector}``.
        points: number of positions, evenly spaced on each side of 0.
        span: first and last position, in units of d.
        seed: of a random direction or of Lanczos.
        scalars: what else to count on the same forward pass: ``"accuracy"``, ``"gradient norm"`` (a backward pass more), or a
            mapping of names to functions of (outputs, targets) that return a number for each sample or a pair (total, weight).
        groups: also the mean loss of each class (``"targets"``) or domain (labels, or a function of a batch): ``"loss of …"``.
        also: problems of the same model on other data, as ``{"test": problem}``, read at the same points: ``"test loss"``, ….
        batchnorm: ``"stored"`` statistics, those of each ``"batch"``, or ``"recalibrated"`` on the data at every point, which takes
            a second pass; None for what the mode of the problem says, stored ones by default.
        cap: a point whose first chunk has a larger loss is read no further, and counts as exploded.
        autocast: ``torch.bfloat16`` to read points in reduced precision where that is faster; the centre, its neighbours and nine
            other points are read without, which gives the error.
        engine: ``"loop"``, point after point; ``"vmap"``, up to 16 at once, for small models whose time goes into dispatch;
            ``"linear"``, the first layer's outputs kept at θ and along d and added up, for models whose first layer is most of
            the work; ``"auto"``, the fastest of these in a timed trial, the loop unless another is 1.2 times as fast. Losses differ
            by rounding, so that records of ``"auto"`` may differ in the last bits from run to run; those of a named engine do
            not. One that a model refuses falls back to the loop, with a note; the record's context names what was used.
        quadratic: also the quadratic model at the centre, and the distance up to which it holds.
        eigenvalues: positions at which λ_max and λ_min of the Hessian are found, 20 to 40 products each.
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
    whole(seed=seed, eigenvalues=eigenvalues)
    alphas = positions(points, span)
    named = named_direction(problem, direction, seed=seed)
    (vector,) = named.vectors
    manner = asked(problem, scalars=scalars, groups=groups, also=also, batchnorm=batchnorm, cap=cap, autocast=autocast)
    if eigenvalues:
        refuse_other_statistics(problem, manner, option=f"eigenvalues={eigenvalues}")
    manner = settled(problem, manner, [vector], [alphas], engine=engine)
    center = manner.center(problem)
    at = alphas[:, None]
    readings = read_points(problem, at, [vector], center=center, asked=manner, on_point=on_point)
    readings, missed = rechecked(problem, at, readings, [vector], center=center, asked=manner)
    model: dict[str, Any] = {}
    spent, notes = named.cost, named.notes
    if quadratic:
        found = quadratic_model(problem, [vector], center=center, asked=manner, reach=float(np.abs(alphas).max()))
        model = {"slope": float(found.slopes[0]), "bend": float(found.bends[0, 0])}
        model |= {"quadratic_radii": found.radii, "quadratic_errors": found.errors}
        spent, notes = spent + found.cost, (*notes, *found.notes)
    values, errors = of_scalars(readings, center)
    if eigenvalues:
        more, of_search, said = _extremes(problem, alphas, vector, count=eigenvalues, seed=seed)
        values |= more
        errors |= {name: np.full(alphas.size, np.nan) for name in more}
        spent, notes = spent + of_search, (*notes, said)
    directions, dropped = kept([vector], below=keep_directions_below)
    partial = np.array([reading.partial for reading in readings])
    return Line(
        step=step,
        alphas=alphas,
        losses=np.array([reading.loss for reading in readings]),
        stderrs=stderrs(readings, center=center),
        direction=None if directions is None else directions[0],
        direction_norm=length(vector),
        name=named.name,
        parameter_norm=length(parameters),
        scalars=values,
        scalar_stderrs=errors,
        cap=cap,
        partial=partial if partial.any() else None,
        precision_error=missed,
        cost=spent + manner.cost(readings, center, seconds=time.perf_counter() - started),
        seed=seed if named.random else None,
        notes=(*notes, *remarks(readings, center), *manner.route.notes, *dropped),
        context=context(problem, name=named.name, center=center) | manner.context(),
        **model,
    )


def of_scalars(readings: list[Reading], center: Reading) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and standard errors of everything that was read beside the loss, in the order of the readings."""
    values, errors = {}, {}
    for name, at_center in center.scalars.items():
        each = [reading.scalars[name] for reading in readings]
        values[name] = np.array([scalar.loss for scalar in each])
        errors[name] = stderrs(each, center=at_center)
    return values, errors


def _extremes(
    problem: Problem, alphas: Float[np.ndarray, " a"], vector: Float[Tensor, " n"], *, count: int, seed: int
) -> tuple[dict[str, Any], Cost, str]:
    places = coarse(alphas.size, count)
    found = extremes(problem, alphas[places, None], [vector], seed=seed)
    values = {name: np.full(alphas.size, np.nan) for name in ("lambda_max", "lambda_min")}
    values["lambda_max"][places], values["lambda_min"][places] = found.largest, found.smallest
    return values, found.cost, eigenvalue_note(len(places), found.residual)


def eigenvalue_note(count: int, residual: float) -> str:
    """What stands for the error of eigenvalues over points."""
    return (
        f"λ_max and λ_min at {count:,} points, residual at most {residual:.1g} of the value; their error from the data was not "
        "measured"
    )
