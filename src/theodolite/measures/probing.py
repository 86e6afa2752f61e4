"""Spectral density and trace of a problem's Hessian or Gauss-Newton matrix from random probes."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from theodolite.errors import ProblemError
from theodolite.linalg import TraceEstimate, hutchinson, hutchpp, slq
from theodolite.measures.samples import Samples, enough, precision_of_trace
from theodolite.measures.subject import OperatorName, Remembering, context_of, operator_of
from theodolite.problem import Problem
from theodolite.records import Density, Trace
from theodolite.records.jackknife import jackknife_stderr


def density(
    problem: Problem,
    *,
    probes: int = 4,
    steps: int = 40,
    operator: OperatorName = "hessian",
    seed: int = 0,
    step: int | None = None,
) -> Density:
    """Spectral density by stochastic Lanczos quadrature, a rule for each probe.

    Cost: probes·steps products. ``spectrum`` with probes gives a density beside the eigenpairs for fewer, sharper at the
    outliers and coarser in the bulk.

    Args:
        problem: what to survey.
        probes: random vectors; errors over them fall with the square root of their number.
        steps: Lanczos steps; nodes of each rule.
        operator: as for ``spectrum``.
        seed: of the probes.
        step: optimiser step, kept in the record.

    Raises:
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    References:
        Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature" (2017).
        Ghorbani, Krishnan, Xiao, "An investigation into neural net optimization via Hessian eigenvalue density" (2019).
    """
    started = time.perf_counter()
    H = operator_of(problem, operator)
    rules = slq(H, probes=probes, steps=min(steps, problem.n), seed=seed, memory=problem.memory)
    return Density(
        step=step,
        cost=replace(H.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes),
        context=context_of(problem, H),
        nodes=rules.nodes.numpy(),
        weights=rules.weights.numpy(),
        operator=operator,
        size=problem.n,
        uniform=True,
    )


def trace(
    problem: Problem,
    *,
    probes: int = 32,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    operator: OperatorName = "hessian",
    samples: Samples = None,
    data_tol: float = 0.05,
    seed: int = 0,
    step: int | None = None,
) -> Trace:
    """Trace with its standard error, and with Hutchinson's method that of every layer from the same probes.

    Cost: ``probes`` products.

    Args:
        problem: what to survey.
        probes: products to spend; Hutch++ takes about a third of them as random samples, which its record counts.
        method: ``"hutchinson"``, or ``"hutch++"``, which is more accurate where few eigenvalues dominate.
        operator: as for ``spectrum``.
        samples: as for ``spectrum``; what ``"auto"`` holds to the tolerance is the error of the trace from the data.
        data_tol: relative error from the data that ``samples="auto"`` is to reach.
        seed: of the probes.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: the method is unknown.
        OperatorError: there are too few probes.
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990).
        Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation" (2021).
    """
    if method not in ("hutchinson", "hutch++"):
        raise ProblemError(f"Expected method 'hutchinson' or 'hutch++', found {method!r}.")
    measure = partial(_trace, probes=probes, method=method, operator=operator, seed=seed, step=step)
    if samples is None:
        return measure(problem)
    quick = partial(_trace, probes=min(probes, 8), method="hutchinson", operator=operator, seed=seed, step=step)
    part = enough(problem, samples, lambda part: precision_of_trace(quick(part)), tol=data_tol, seed=seed)
    found = measure(part.problem)
    return found.replace(cost=found.cost + part.cost, notes=(*found.notes, *part.notes))


def _trace(problem: Problem, *, probes: int, method: str, operator: str, seed: int, step: int | None) -> Trace:
    started = time.perf_counter()
    H = operator_of(problem, operator)
    layers = problem.layout.layer_slices if method == "hutchinson" else {}
    data_stderr = float("nan")
    if method == "hutchinson":
        A = Remembering(H)
        found = hutchinson(A, probes=probes, seed=seed, parts=tuple(layers.values()), memory=problem.memory)
        without = A.left_out.mean(dim=1).numpy()
        data_stderr = float(jackknife_stderr(without, whole=np.asarray(found.value), weights=A.weights.numpy()))
    else:
        found = hutchpp(H, products=probes, seed=seed, memory=problem.memory)
    return Trace(
        step=step,
        cost=replace(H.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes),
        context=context_of(problem, H),
        value=found.value,
        stderr=found.stderr,
        data_stderr=data_stderr,
        layers=tuple(layers),
        layer_values=found.parts.numpy(),
        layer_stderrs=found.part_stderrs.numpy(),
        probes=_samples(found),
        method=method,
        operator=operator,
        size=problem.n,
    )


def _samples(found: TraceEstimate) -> int:
    """Random samples behind an estimate: Hutch++ spends other products on its sketch, all where that spans the space."""
    exact = len(found.samples) == 1 and found.stderr == 0  # the error from a single sample is not known
    return 0 if exact else len(found.samples)
