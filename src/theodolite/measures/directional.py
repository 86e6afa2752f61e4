"""Curvature along the gradient, the optimiser's update and given directions, in three ways."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.measures.arguments import optimises, surveyed
from theodolite.measures.excursions import ChunkMeans, gradient_at, loss_at
from theodolite.measures.subject import context_of
from theodolite.operators import Hessian
from theodolite.operators.updates import next_update
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, real
from theodolite.problem.arrays import to_numpy
from theodolite.problem.finite import non_finite_loss
from theodolite.records import Cost, Directional
from theodolite.records.jackknife import jackknife_stderr

# A gradient step of this share of 1 + ‖θ‖ where no optimiser says how long it is.
SHARE = 1e-3
# Points, and their distance in units of rounding of θ, from whose third differences the rounding of the loss is read.
NOISE_POINTS, NOISE_ULPS = 7, 64.0


def directional(
    problem: Problem,
    optimizer: Optimizer | None = None,
    *,
    directions: Mapping[str, Float[Tensor, " n"]] | None = None,
    length: float | None = None,
    step: int | None = None,
) -> Directional:
    """Slope, curvature and change of the loss along the gradient, the optimiser's next update, and given directions.

    Curvature is measured by an exact product, by a difference of gradients and by losses alone. They agree on a quadratic;
    their disagreement is the third-order index of the record. Third derivatives are taken by such differences only: automatic
    differentiation to third order through LayerNorm and BatchNorm is silently wrong in PyTorch.

    Cost: for k directions k products, k + 2 gradients and 7 forward passes (for the rounding of the loss).

    Args:
        problem: what to survey.
        optimizer: adds the direction ``"update"``, the step that it would take next on this problem's gradient.
        directions: by name, each a displacement of n numbers used at its own length; the names ``"gradient"`` and
            ``"update"`` are taken.
        length: of the step along ``"gradient"``; by default that of the update, or 1e-3·(1 + ‖θ‖) without an optimiser; above 0.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss that is not finite at the end of a displacement is a reading.

    Raises:
        ProblemError: a direction has another length, is zero or not finite, length is not positive, or the optimiser does not fit.
        NonFiniteError: the loss or gradient at θ is not finite.
        DerivativeError: second derivatives are missing or wrong.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> found = directional(problem, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> found.names
        ('gradient', 'update')
        >>> bool(abs(found.agreement[1] - 1) < 1e-2)
        True

    References:
        Mulayoff & Michaeli, "Unique properties of flat minima in deep networks" (2020).
        Schneider, Dangel & Hennig, "Cockpit: a practical debugging tool for the training of deep neural networks" (2021).
        Dauphin & Schoenholz, "MetaInit: initializing learning by learning to initialize" (2019).
        Moré & Wild, "Estimating computational noise" (2011).
    """
    started = time.perf_counter()
    surveyed(problem)
    optional(optimises, optimizer=optimizer)
    optional(real, length=length)
    if length is not None and not 0 < length < math.inf:
        raise ProblemError(
            f"Expected a positive length of the step along the gradient, found length={length}. Leave it out for the default."
        )
    H = Hessian(problem)
    with problem.session():
        _, gradient, _ = gradient_at(problem)
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(
                "Expected a finite gradient, found NaN or infinity in it. Check the loss and the inputs."
            )
        named = _named(problem, gradient, optimizer, directions or {}, length)
        D = torch.stack(list(named.values()))
        here, _, slopes = gradient_at(problem, along=D)
        if not np.isfinite(here.value):
            raise non_finite_loss(float(here.value))
        HD, left_out, weights = H.by_chunk(D.T.contiguous())
        ends = [gradient_at(problem, d, along=d[None]) for d in D]
        noise = _loss_noise(problem, D[0])
    exact = to_numpy((D.double() * HD.T.double()).sum(1))
    rises = _columns([there - here for there, _, _ in ends])
    turned = _columns([_column(slope) for _, _, slope in ends]) - slopes
    beyond = replace(rises, totals=2 * (rises.totals - slopes.totals))
    norms = to_numpy(D.double().norm(dim=1))
    rounding = torch.finfo(problem.dtype).eps * float(gradient.norm()) * norms
    return Directional(
        step=step,
        cost=replace(
            H.cost + Cost(gradients=len(D) + 2.0, forwards=float(NOISE_POINTS)), seconds=time.perf_counter() - started
        ),
        notes=tuple(H.notes),
        context=context_of(problem, H),
        names=tuple(named),
        norms=norms,
        slopes=slopes.value,
        exact=exact,
        exact_stderrs=jackknife_stderr(to_numpy(left_out), whole=exact, weights=to_numpy(weights)),
        difference=turned.value,
        difference_stderrs=turned.stderr,
        loss_only=beyond.value,
        loss_only_stderrs=beyond.stderr,
        # Two losses of independent rounding, doubled; and the slope.
        loss_only_floors=2 * np.hypot(math.sqrt(2) * noise, rounding),
        decreases=-rises.value,
        decrease_stderrs=rises.stderr,
        loss=float(here.value),
        loss_stderr=float(here.stderr),
        gradient_norm=float(gradient.norm()),
        gradient_quotient=_gradient_quotient(gradient, HD[:, 0], D[0]) if "gradient" in named else math.nan,
    )


def _named(
    problem: Problem,
    gradient: Float[Tensor, " n"],
    optimizer: Optimizer | None,
    directions: Mapping[str, Tensor],
    length: float | None,
) -> dict[str, Float[Tensor, " n"]]:
    """All displacements by name, the gradient first; at a stationary point there is none along it."""
    taken = {"gradient", "update"} & set(directions)
    if taken:
        raise ProblemError(
            f"Expected other names than 'gradient' and 'update' for given directions, found {sorted(taken)}."
        )
    update = None if optimizer is None else next_update(problem, optimizer, gradient=gradient)
    if length is None:
        norm = float(problem.layout.flatten(problem.point().leaves).detach().norm())
        length = SHARE * (1 + norm) if update is None else float(update.norm())
    found: dict[str, Tensor] = {}
    if bool(gradient.any()) and length > 0:
        found["gradient"] = -length / gradient.norm() * gradient
    if update is not None and bool(update.any()):
        found["update"] = update
    for name, direction in directions.items():
        found[name] = _checked(problem, name, direction)
    if not found:
        raise ProblemError(
            "Expected at least one direction, found none: the gradient and the update are zero. Give directions={name: vector}."
        )
    return found


def _checked(problem: Problem, name: str, direction: Tensor) -> Float[Tensor, " n"]:
    if direction.shape != (problem.n,) or not bool(torch.isfinite(direction).all()) or not bool(direction.any()):
        raise ProblemError(
            f"Expected the direction {name!r} to be {problem.n} finite numbers, not all zero, one for each parameter in the order "
            f"of named_parameters(); found shape {tuple(direction.shape)} with {int(torch.count_nonzero(direction))} nonzero and "
            f"{int((~torch.isfinite(direction)).sum())} not finite."
        )
    return direction.to(problem.device, problem.dtype)


def _column(means: ChunkMeans) -> ChunkMeans:
    """The only column of several."""
    return replace(means, totals=means.totals[:, 0])


def _columns(means: list[ChunkMeans]) -> ChunkMeans:
    """Means of one quantity each as the columns of one."""
    return replace(means[0], totals=np.stack([each.totals for each in means], axis=1))


def _loss_noise(problem: Problem, direction: Float[Tensor, " n"]) -> float:
    """Standard deviation of the rounding of the loss at θ, from third differences at points 64 units of rounding apart.

    Cost: 7 forward passes.
    """
    leaves = problem.layout.flatten(problem.point().leaves).detach()
    reach = NOISE_ULPS * torch.finfo(problem.dtype).eps * (1 + float(leaves.norm()))
    unit = direction / direction.norm()
    values = [float(loss_at(problem, index * reach * unit).value) for index in range(NOISE_POINTS)]
    with np.errstate(all="ignore"):
        third = np.diff(np.array(values), n=3)
        return float(np.sqrt(np.mean(third**2) / 20))  # the squared coefficients 1, 3, 3, 1 add up to 20


def _gradient_quotient(gradient: Float[Tensor, " n"], HD: Float[Tensor, " n"], direction: Float[Tensor, " n"]) -> float:
    """MetaInit's quotient, from the product with a multiple of the gradient."""
    scale = -float(direction.norm()) / float(gradient.norm())
    g, Hg = gradient.double(), HD.double() / scale
    guarded = g + torch.where(g < 0, -1e-5, 1e-5)
    return float(((g - Hg) / guarded - 1).abs().mean())
