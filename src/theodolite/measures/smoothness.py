"""Gradient-normalised smoothness: how far the gradient follows its linear model."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.linalg import Identity, lanczos
from theodolite.linalg.probes import Probes
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import gradient_at
from theodolite.measures.subject import context_of, operator_of
from theodolite.operators import ProblemOperator
from theodolite.problem import Problem
from theodolite.problem.arguments import whole
from theodolite.problem.finite import non_finite_loss
from theodolite.records import Cost, Smoothness

DECADES = (-4, 1)  # shells from 1e-4 to 10 times 1 + ‖θ‖


def smoothness(
    problem: Problem,
    *,
    operator: Literal["hessian", "ggn", "none"] = "hessian",
    draws: int = 4,
    shells: int = 6,
    refine: int = 6,
    seed: int = 0,
    step: int | None = None,
) -> Smoothness:
    """Radius γ within which g + Hh describes the gradient to ‖g‖‖h‖/γ, by sampling directions on shells.

    Low confidence as a number: the supremum over all h is taken over a few, the gradient, the top eigenvector and random ones.
    Known cases bound it: γ is infinite on a quadratic with its own Hessian, ‖g‖/L where H is left out and the gradient is
    L-Lipschitz, and at least √(2‖g‖/L) where the Hessian is. Readings that rounding makes are left out.

    Cost: 2·(draws + 2) gradients a shell, draws + 2 products and a search for the top eigenvector (no products with ``"none"``).

    Args:
        problem: what to survey.
        operator: what stands for H; ``"none"`` for 0.
        draws: random directions.
        shells: radii from 1e-4 to 10 times 1 + ‖θ‖, evenly spaced in their logarithm.
        refine: bisections of the interval in which γ lies.
        seed: of the draws.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: an option makes no sense.
        NonFiniteError: the loss or gradient at θ is not finite.

    Example:
        >>> inputs, targets = torch.randn(32, 5), torch.randn(32, 1)
        >>> problem = Problem(torch.nn.Linear(5, 1).double(), torch.nn.MSELoss(), [(inputs.double(), targets.double())])
        >>> smoothness(problem).gamma  # the squared error of a linear model is a quadratic
        inf

    References:
        Semenov, Jaggi & Doikov, "Gradient-normalized smoothness for optimization with approximate Hessians" (2025).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(draws=draws, shells=shells, refine=refine, seed=seed)
    if operator not in ("hessian", "ggn", "none") or draws < 0 or shells < 2 or refine < 0:
        raise ProblemError(
            f"Expected operator 'hessian', 'ggn' or 'none', draws and refine of at least 0 and two shells or more, found "
            f"operator={operator!r}, draws={draws}, shells={shells}, refine={refine}."
        )
    with problem.session():
        shell = _Shells(problem, operator, draws, seed)
        size = 1 + float(problem.layout.flatten(problem.point().leaves).detach().norm())
        readings = {radius: shell.bound(radius) for radius in (size * np.logspace(*DECADES, shells)).tolist()}
        for _ in range(refine if shell.norm > 0 else 0):
            middle = _between(readings)
            if middle is None:
                break
            readings[middle] = shell.bound(middle)
    radii = sorted(readings)
    H = shell.H
    spent = Cost(gradients=float(shell.gradients)) + (Cost() if H is None else H.cost)
    return Smoothness(
        step=step,
        cost=replace(spent, seconds=time.perf_counter() - started),
        seed=seed,
        notes=() if H is None else tuple(H.notes),
        context=context_of(problem, H),
        radii=np.array(radii),
        bounds=np.array([readings[radius][0] for radius in radii]),
        worst=tuple(readings[radius][1] for radius in radii),
        directions=tuple(shell.directions),
        gradient_norm=shell.norm,
        gradient_norm_stderr=shell.norm_stderr,
        loss=shell.loss,
        loss_stderr=shell.loss_stderr,
        operator=operator,
    )


class _Shells:
    """Directions with their products, and the gradient at θ, against which shells are read."""

    def __init__(self, problem: Problem, operator: str, draws: int, seed: int) -> None:
        self.problem = problem
        here, self.gradient, _ = gradient_at(problem)
        self.loss, self.norm, self.gradients = float(here.value), float(self.gradient.norm()), 1
        if not math.isfinite(self.loss) or not math.isfinite(self.norm):
            raise non_finite_loss(self.loss)
        self.loss_stderr, self.norm_stderr = float(here.stderr), math.nan
        if self.norm > 0:  # along itself: the slope without a chunk is the norm without it, to first order
            _, _, slopes = gradient_at(problem, along=(self.gradient / self.norm)[None])
            self.norm_stderr, self.gradients = float(slopes.stderr[0]), 2
        self.H: ProblemOperator | None = None if operator == "none" else operator_of(problem, operator)
        probes = Probes(Identity(problem.n, dtype=problem.dtype, device=problem.device), seed=seed).draw(draws)
        found: dict[str, Tensor] = {"gradient": self.gradient} if self.norm > 0 else {}
        if self.H is not None:
            found["top eigenvector"] = lanczos(self.H, k=1, seed=seed, memory=problem.memory).vectors[0]
        found |= {f"random {index}": probe for index, probe in enumerate(probes)}
        self.directions: dict[str, Float[Tensor, " n"]] = {name: v / v.norm() for name, v in found.items()}
        self.products = {
            name: torch.zeros_like(v) if self.H is None else self.H @ v for name, v in self.directions.items()
        }

    def bound(self, radius: float) -> tuple[float, str]:
        """Least ‖g‖r/‖remainder‖ over the directions, both ways, and the name of the direction that gives it."""
        least, worst = math.inf, ""
        for name, direction in self.directions.items():
            for sign in (1.0, -1.0):
                _, there, _ = gradient_at(self.problem, sign * radius * direction)
                self.gradients += 1
                linear = self.gradient + sign * radius * self.products[name]
                remainder = float((there - linear).double().norm())
                # Differences of this size are rounding of gradients and products, not the loss.
                floor = 64 * torch.finfo(self.problem.dtype).eps * float(there.double().norm() + linear.double().norm())
                bound = self.norm * radius / remainder if not remainder <= floor else math.inf
                if not bound >= least:
                    least, worst = bound, name
        return least, worst


def _between(readings: dict[float, tuple[float, str]]) -> float | None:
    """Geometric middle of the last shell on which the model holds for its own radius and the first on which it does not."""
    held = 0.0
    least = math.inf
    for radius in sorted(readings):
        least = min(least, readings[radius][0])
        if not least >= radius:
            return math.sqrt(held * radius) if held > 0 else radius / 10
        held = radius
    return None
