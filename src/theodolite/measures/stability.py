"""Sharpness of a problem against the stability bound of its optimiser."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import NonFiniteError
from theodolite.linalg import Congruence, Diagonal, LinearOperator, lanczos
from theodolite.measures.arguments import optimises, surveyed
from theodolite.measures.gradients import gradients
from theodolite.measures.rules import Rule, leading_group, momentum_of, rule_of
from theodolite.measures.subject import context_of
from theodolite.measures.verification import verified
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.arguments import real, whole
from theodolite.records import Cost, Gradients, Stability


def stability(
    problem: Problem,
    optimizer: Optimizer,
    *,
    tol: float = 1e-2,
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int = 100,
    step: int | None = None,
) -> Stability:
    """Sharpness against 2/lr, in the form that the optimiser's own recursion has on a quadratic.

    The preconditioner is held at its current value, as at the edge of stability, where it changes slowly.

    Cost: one gradient, and 10 to 30 products for the sharpness; for an optimiser with a preconditioner, several learning
    rates or several weight decays as many again.

    Args:
        problem: what to survey; ``mode="train"`` measures what training sees of a BatchNorm network.
        optimizer: its groups and state are read, never written.
        tol: relative residual to reach.
        seed: of the start vector.
        start: vector to start from, e.g. the top eigenvector at an earlier step.
        max_products: for each eigenvalue.
        step: optimiser step, kept in the record.

    Returns:
        A record; NaN for a loss that is not finite and for bounds that are not known.

    Raises:
        ProblemError: an argument is of the wrong type.

    References:
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021).
        Cohen et al., "Adaptive gradient methods at the edge of stability" (2022).
        Gilmer et al., "A loss curvature perspective on training instability in deep learning" (2021).
    """
    surveyed(problem)
    optimises(optimizer)
    whole(max_products=max_products, seed=seed)
    real(tol=tol)
    return stability_and_vectors(
        problem, optimizer, tol=tol, seed=seed, start=start, max_products=max_products, step=step
    )[0]


def stability_and_vectors(
    problem: Problem,
    optimizer: Optimizer,
    *,
    tol: float,
    seed: int,
    start: Float[Tensor, "*j n"] | None,
    max_products: int,
    step: int | None,
) -> tuple[Stability, Float[Tensor, "j n"] | None]:
    """The record, and the eigenvector that the next measurement can start from."""
    started = time.perf_counter()
    here = gradients(problem)
    if not math.isfinite(here.loss):
        reason = "the loss is not finite"
        return _unreadable(here, problem, optimizer, tol=tol, seed=seed, step=step, reason=reason), None
    H = Hessian(problem)
    try:
        found = lanczos(H, k=1, tol=tol, seed=seed, start=start, max_products=max_products, memory=problem.memory)
        values, residuals, errors = verified(H, found)
        sharpness = float(values[0])
    except NonFiniteError as error:
        return _unreadable(here, problem, optimizer, tol=tol, seed=seed, step=step, reason=str(error)), None
    rule, preconditioned, worst = _judge(
        H, rule_of(optimizer, problem), sharpness, tol=tol, seed=seed, max_products=max_products
    )
    residual, group = max(float(residuals[0]), worst), leading_group(optimizer, problem)
    return Stability(
        step=step,
        cost=replace(H.cost + here.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=(*H.notes, *_notes(rule)),
        context=context_of(problem, H),
        loss=here.loss,
        loss_stderr=here.loss_stderr,
        gradient_norm=here.norm,
        sharpness=sharpness,
        sharpness_stderr=float(errors[0]),
        residual=residual,
        converged=bool(residual <= tol and found.settled),
        tol=tol,
        preconditioned_sharpness=preconditioned,
        threshold=rule.threshold if isinstance(rule, Rule) else float("nan"),
        ratio=preconditioned / rule.threshold if isinstance(rule, Rule) else float("nan"),
        bound=rule.bound if isinstance(rule, Rule) and rule.uniform else float("nan"),
        learning_rate=float(group["lr"]),
        momentum=momentum_of(group),
        optimizer=type(optimizer).__name__,
        rule=rule.words if isinstance(rule, Rule) else "unknown",
    ), found.vectors


def _judge(
    H: Hessian, rule: Rule | str, sharpness: float, *, tol: float, seed: int, max_products: int
) -> tuple[Rule | str, float, float]:
    """The rule, the preconditioned sharpness and the residual of what it took; what fails here leaves the sharpness."""
    if isinstance(rule, str):
        return rule, float("nan"), 0.0
    if rule.shift is not None:
        return rule, sharpness + rule.shift, 0.0
    decayed: LinearOperator = H + Diagonal(rule.decay) if bool(rule.decay.any()) else H
    # With several learning rates no one threshold exists: what is compared is the ratio itself, against 1.
    scale = rule.precondition if rule.uniform else rule.reach.sqrt()
    try:
        # From a random vector: the eigenvectors of H say nothing of those of P^-½HP^-½ when P spans orders of magnitude.
        top = lanczos(Congruence(decayed, scale), k=1, tol=tol, seed=seed, max_products=max_products)
    except NonFiniteError as error:
        return f"the preconditioned product is not finite: {error}", float("nan"), 0.0
    return rule, float(top.values[0]), float(top.residuals[0]) if top.settled else float("inf")


def _unreadable(
    here: Gradients, problem: Problem, optimizer: Optimizer, *, tol: float, seed: int, step: int | None, reason: str
) -> Stability:
    nan, group = float("nan"), leading_group(optimizer, problem)
    return Stability(
        step=step,
        cost=here.cost + Cost(),
        seed=seed,
        notes=(f"no sharpness: {reason}",),
        context=here.context,
        loss=here.loss,
        loss_stderr=here.loss_stderr,
        gradient_norm=here.norm,
        sharpness=nan,
        sharpness_stderr=nan,
        residual=nan,
        converged=False,
        tol=tol,
        preconditioned_sharpness=nan,
        threshold=nan,
        ratio=nan,
        learning_rate=float(group["lr"]),
        momentum=momentum_of(group),
        optimizer=type(optimizer).__name__,
        rule="not judged",
    )


def _notes(rule: Rule | str) -> tuple[str, ...]:
    if isinstance(rule, str):
        return (f"no stability bound: {rule}",)
    notes = []
    if rule.unstepped:
        notes.append(
            f"left out of the bound: {rule.unstepped} parameters without optimiser state, which have never been stepped"
        )
    if not rule.uniform:
        notes.append("several learning rates: preconditioned_sharpness is the ratio itself, the threshold 1")
    return tuple(notes)
