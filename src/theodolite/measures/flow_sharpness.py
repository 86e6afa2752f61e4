"""Sharpness of the minimum that gradient flow reaches from here."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from theodolite.errors import NotConvergedWarning, ProblemError
from theodolite.linalg import lanczos
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import context_with_chunks, gradient_at
from theodolite.measures.verification import verified
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.arguments import real, whole
from theodolite.problem.criteria import BinaryCrossEntropy, CrossEntropy
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.objective import CriterionObjective
from theodolite.records import Cost, Flow

SEPARABLE = (
    "cross-entropy has no finite minimum on data that can be separated: the flow ends where the tolerance says, and its "
    "sharpness falls with the tolerance"
)


def flow_sharpness(
    problem: Problem,
    *,
    tol: float = 1e-6,
    max_steps: int = 2000,
    reach: float = 0.5,
    every: int = 10,
    sharpness_tol: float = 1e-3,
    seed: int = 0,
    step: int | None = None,
) -> Flow:
    """λ₁ at the end of the gradient flow from θ: a sharpness that gradient descent only ever lowers on scalar networks.

    Runge-Kutta steps of length ``reach``/max |λ|, shortened where the loss would rise, which it does nowhere along the flow. Made
    for the squared error; see the note of the record for cross-entropy.

    Cost: expensive, a whole training run: four gradients a step and some ten products every ``every`` steps, one of them for the
    error from the data. The flow along a
    direction of curvature μ takes ln(1/tol)·λ₁/(reach·μ) steps.

    Args:
        problem: where the flow starts; its model is copied and not written to.
        tol: gradient norm to reach, relative to the first.
        max_steps: stop after so many; the record then says that the flow did not converge.
        reach: step times max |λ|; the error of S_GF falls with its fourth power (4e-5 at 1 on scalar networks), stable up to 2.78.
        every: steps between readings of the sharpness.
        sharpness_tol: relative residual of λ₁.
        seed: of its start vectors.
        step: optimiser step, kept in the record.

    Returns:
        A record; a NotConvergedWarning is issued where the flow did not end.

    Raises:
        ProblemError: an option makes no sense.
        NonFiniteError: the loss is not finite.

    Example:
        >>> from torch import nn
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(torch.randn(16, 3), torch.randn(16, 1))])
        >>> flow_sharpness(problem, tol=1e-3).converged
        True

    References:
        Kreisler, Shpigel Nacson, Soudry & Carmon, "Gradient descent monotonically decreases the sharpness of gradient flow
        solutions in scalar networks and beyond" (2023).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(max_steps=max_steps, every=every, seed=seed)
    real(tol=tol, reach=reach, sharpness_tol=sharpness_tol)
    if not (tol > 0 and max_steps >= 1 and 0 < reach <= 2.5 and every >= 1):
        raise ProblemError(
            f"Expected tol > 0, max_steps and every of at least 1, and reach in (0, 2.5], found tol={tol}, max_steps={max_steps}, "
            f"every={every}, reach={reach}."
        )
    flow = _Integration(problem, sharpness_tol=sharpness_tol, reach=reach, seed=seed)
    start = flow.norm
    while flow.norm > tol * start and flow.steps < max_steps and not flow.stuck:
        if flow.steps % every == 0:
            flow.read()
        flow.advance()
    flow.read()
    converged = flow.norm <= tol * start
    if not converged:
        warnings.warn(
            f"The gradient flow did not end within {flow.steps} steps: the gradient fell to {flow.norm / start:.1e} of its first "
            f"value, tol={tol:g} was asked for. Raise max_steps or tol, or start later in training.",
            NotConvergedWarning,
            stacklevel=2,
        )
    times, losses, loss_stderrs, norms, sharpnesses, residuals, sharpness_stderrs = np.array(flow.readings).T
    return Flow(
        step=step,
        cost=replace(flow.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=(*flow.notes, *_remarks(problem)),
        context=context_with_chunks(problem, flow.here),
        times=times,
        losses=losses,
        gradient_norms=norms,
        sharpnesses=sharpnesses,
        residuals=residuals,
        loss_stderrs=loss_stderrs,
        sharpness_stderrs=sharpness_stderrs,
        distance=float(flow.moved.norm()),
        steps=flow.steps,
        converged=converged,
        tol=tol,
    )


def scalar_flow_sharpness(weights: Sequence[float]) -> float:
    """The same in closed form for the scalar network L = ½(Πw − 1)², all weights of positive product.

    The flow keeps w_i² − w_j², so that it ends at w_i*² = w_i² + c with Π(w_i² + c) = 1, where λ₁ = Σ 1/w_i*².

    Args:
        weights: w, with a positive product.

    Raises:
        ProblemError: the product is not positive, which leaves the theory.

    Example:
        >>> round(scalar_flow_sharpness((1.5, 0.8, 0.7)), 6)
        3.50811

    References:
        Kreisler et al. (2023), as above.
    """
    squares = np.square(np.array(weights, dtype=np.float64))
    if not squares.size or not math.prod(weights) > 0:
        raise ProblemError(f"Expected weights with a positive product, found {tuple(weights)}.")
    lowest = float(squares.min())

    def excess(gap: float) -> float:
        """log Π(w² + c) for c = gap − min w², rising in the gap."""
        return float(np.log(squares - lowest + gap).sum())

    gap = brentq(excess, 1e-300, 1.0 + lowest, xtol=1e-300, rtol=8 * np.finfo(np.float64).eps)
    return float((1 / (squares - lowest + gap)).sum())


class _Integration:
    """State of the flow: displacement from θ, loss and gradient there, and what was read on the way."""

    def __init__(self, problem: Problem, *, sharpness_tol: float, reach: float, seed: int) -> None:
        self.problem, self.tol, self.reach, self.seed = problem, sharpness_tol, reach, seed
        self.moved = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
        self.here, self.gradient, _ = gradient_at(problem)
        if not bool(torch.isfinite(self.gradient).all()):
            raise non_finite_loss(float(self.here.value))
        self.cost = Cost(gradients=1.0)
        self.time, self.steps, self.stuck, self.length = 0.0, 0, False, 0.0
        self.readings: list[tuple[float, ...]] = []
        self.notes: tuple[str, ...] = ()
        self._vectors: Tensor | None = None
        self._twin = _twin(problem)

    @property
    def norm(self) -> float:
        return float(self.gradient.norm())

    def read(self) -> None:
        """λ₁ here, and the largest |λ|, which sets the length of the next steps."""
        _write(self._twin, self.problem, self.moved)
        H = Hessian(self._twin)
        found = lanczos(
            H, k=1, which="magnitude", tol=self.tol, seed=self.seed, start=self._vectors, memory=self.problem.memory
        )
        self._vectors = found.vectors
        size = abs(float(found.values[0]))
        if float(found.values[0]) < 0:  # the strongest curves downwards: it bounds the step, and λ₁ is another
            found = lanczos(H, k=1, tol=self.tol, seed=self.seed, memory=self.problem.memory)
        values, residuals, errors = verified(H, found)
        self.notes = tuple(H.notes)
        self.cost += H.cost
        loss = float(self.here.value), float(self.here.stderr)
        reading = float(values[0]), float(residuals[0]), float(errors[0])
        self.readings.append((self.time, *loss, self.norm, *reading))
        self.length = self.reach / size if size > 0 else self.reach

    def advance(self) -> None:
        """One Runge-Kutta step of fourth order, halved until the loss does not rise."""
        while True:
            h, k1 = self.length, -self.gradient
            k2 = self._slope(0.5 * h * k1)
            k3 = self._slope(0.5 * h * k2)
            k4 = self._slope(h * k3)
            moved = self.moved + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            there, gradient, _ = gradient_at(self.problem, moved)
            self.cost += Cost(gradients=4.0)
            if float(there.value) <= float(self.here.value) * (1 + 1e-12):
                break
            self.length = h / 2
            if self.length < 1e-12 * h + 1e-300 or torch.equal(moved, self.moved):
                self.stuck = True  # rounding hides the descent
                return
        self.moved, self.here, self.gradient = moved, there, gradient
        self.time, self.steps = self.time + h, self.steps + 1

    def _slope(self, further: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -gradient_at(self.problem, self.moved + further)[1]


def _twin(problem: Problem) -> Problem:
    """The same problem on a copy of its model in the problem's own type, whose parameters may be written to."""
    twin = problem.replace()
    twin.model = copy.deepcopy(problem.model)
    if problem.cast is not None:
        twin.model.to(problem.cast)
    return twin


def _write(twin: Problem, problem: Problem, moved: Float[Tensor, " n"]) -> None:
    named = dict(twin.model.named_parameters())
    with torch.no_grad():
        parts = problem.layout.unflatten(moved)
        for name, leaf, part in zip(problem.layout.names, problem.point().leaves, parts, strict=True):
            named[name].copy_(leaf + part)


def _remarks(problem: Problem) -> tuple[str, ...]:
    objective = problem.objective
    entropy = isinstance(objective, CriterionObjective) and isinstance(
        objective.loss, CrossEntropy | BinaryCrossEntropy
    )
    return (SEPARABLE,) if entropy else ()
