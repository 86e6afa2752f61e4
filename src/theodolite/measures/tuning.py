"""Learning rate and momentum from a short Lanczos run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

from theodolite.errors import ProblemError
from theodolite.linalg import lanczos
from theodolite.measures.arguments import surveyed
from theodolite.measures.subject import context_of, operator_of, refuse_covariance
from theodolite.measures.verification import SMALL, radius_of, verified
from theodolite.problem import Problem
from theodolite.problem.arguments import real, whole
from theodolite.records import Tuning


def tuning(
    problem: Problem,
    *,
    steps: int = 20,
    operator: Literal["hessian", "ggn"] = "ggn",
    condition_cap: float = 1e4,
    earlier: Tuning | None = None,
    smoothing: float = 0.5,
    seed: int = 0,
    step: int | None = None,
) -> Tuning:
    """Learning rate and momentum with which heavy ball converges fastest on the quadratic model of the loss.

    A reading of the Lanczos learner of Granziol et al., whose details are not published: extreme Ritz values of a short run,
    smoothed from call to call. The smallest Ritz value of a short run lies above the smallest eigenvalue, so that the
    momentum is rather too low. The largest is raised by its residual, within which an eigenvalue lies: a learning rate from below
    λ₁ would be too high. On the loss of a network it is a suggestion, the learning rate an upper end.

    Cost: ``steps`` products, and one for the residual of the largest and its error from the data.

    Args:
        problem: the current mini-batch, or all data.
        steps: of Lanczos.
        operator: ``"ggn"``, which has no negative curvature, or ``"hessian"``, whose negative part is left out.
        condition_cap: curvatures below the largest divided by this are raised to it.
        earlier: result of the previous call, to smooth with.
        smoothing: weight of the earlier extremes, 0 to below 1; it takes an ``earlier`` that found positive curvature.
        seed: of the start vector.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: steps, condition_cap or smoothing make no sense.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randn(64, 1)
        >>> problem = Problem(torch.nn.Linear(10, 1), torch.nn.MSELoss(), [(inputs, targets)])
        >>> found = tuning(problem)
        >>> 0 < found.momentum < found.rate < 1
        True

    References:
        Granziol, Zohren & Roberts, "Learning rates as a function of batch size: a random matrix theory approach to neural
        network training" (2022).
        Polyak, "Some methods of speeding up the convergence of iteration methods" (1964).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(steps=steps, seed=seed)
    real(condition_cap=condition_cap, smoothing=smoothing)
    refuse_covariance(operator)
    if steps < 1 or not condition_cap >= 1 or not 0 <= smoothing < 1:
        raise ProblemError(
            f"Expected steps and condition_cap of at least 1 and smoothing from 0 to below 1, found steps={steps}, "
            f"condition_cap={condition_cap}, smoothing={smoothing}."
        )
    H = operator_of(problem, operator)
    # A tolerance of rounding: all steps are taken, which the smallest Ritz value needs.
    run = lanczos(H, k=1, tol=1e-18, seed=seed, max_products=min(steps, problem.n), memory=problem.memory)
    values, residuals, errors = verified(H, run)
    nodes, largest, stderr, residual = run.nodes, float(values[0]), float(errors[0]), float(residuals[0])
    largest += residual * max(abs(largest), SMALL * radius_of(run, values))
    # A null space leaves Ritz values of the size of rounding, which are no curvature.
    positive = nodes[nodes > largest * 1e-12] if largest > 0 else nodes[:0]
    smallest = float(positive.min()) if len(positive) else float("nan")
    if earlier is not None and earlier.smallest > 0:
        largest = smoothing * earlier.largest + (1 - smoothing) * largest
        stderr = smoothing * earlier.largest_stderr + (1 - smoothing) * stderr
        smallest = smoothing * earlier.smallest + (1 - smoothing) * smallest
    return Tuning(
        step=step,
        cost=replace(H.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes) if smallest > 0 else (*H.notes, "no positive curvature was found"),
        context=context_of(problem, H),
        largest=largest,
        smallest=max(smallest, largest / condition_cap) if smallest > 0 else smallest,
        largest_stderr=stderr,
        residual=residual,
        lanczos_steps=run.products,
        condition_cap=condition_cap,
        operator=operator,
        size=problem.n,
    )
