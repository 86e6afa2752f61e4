"""Spectral density and trace of a problem's Hessian or Gauss-Newton matrix from random probes."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from theodolite.errors import ProblemError
from theodolite.linalg import TraceEstimate, hutchinson, hutchpp, slq, xnystrace, xtrace
from theodolite.measures.arguments import surveyed
from theodolite.measures.beside import whole_rules
from theodolite.measures.samples import Precision, Samples, enough, relative_error
from theodolite.measures.subject import OperatorName, Remembering, context_of, operator_of
from theodolite.measures.verification import known_pairs
from theodolite.operators import ProblemOperator
from theodolite.problem import Problem
from theodolite.problem.arguments import whole
from theodolite.records import Density, Spectrum, Trace
from theodolite.records.jackknife import jackknife_stderr

Method = Literal["hutchinson", "hutch++", "xtrace", "xnystrace"]


def density(
    problem: Problem,
    *,
    probes: int = 4,
    steps: int = 40,
    operator: OperatorName = "hessian",
    spectrum: Spectrum | None = None,
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
        spectrum: of this problem at this point; its converged pairs are counted exactly and projected out of the probes.
        seed: of the probes.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: the spectrum is of another problem or holds no eigenvectors.
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    References:
        Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature" (2017).
        Ghorbani, Krishnan, Xiao, "An investigation into neural net optimization via Hessian eigenvalue density" (2019).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(probes=probes, steps=steps, seed=seed)
    H = operator_of(problem, operator)
    known = None if spectrum is None else known_pairs(problem, spectrum, H, operator=operator)
    rules = slq(H, probes=probes, steps=min(steps, problem.n), seed=seed, deflate=known, memory=problem.memory)
    nodes, weights = whole_rules(rules)
    return Density(
        step=step,
        cost=replace(H.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=tuple(H.notes),
        context=context_of(problem, H),
        nodes=nodes,
        weights=weights,
        operator=operator,
        size=problem.n,
        deflated=len(rules.known),
        uniform=rules.uniform,
    )


def trace(
    problem: Problem,
    *,
    probes: int = 32,
    method: Method = "hutchinson",
    operator: OperatorName = "hessian",
    spectrum: Spectrum | None = None,
    samples: Samples = None,
    data_tol: float = 0.05,
    seed: int = 0,
    step: int | None = None,
) -> Trace:
    """Trace with its standard error, and with Hutchinson's method that of every layer from the same probes.

    Cost: ``probes`` products. After a ``spectrum`` with probes there is nothing left to pay: it has a trace already.

    Args:
        problem: what to survey.
        probes: products to spend; Hutch++ takes about a third of them as random samples, XTrace half, which their records
            count.
        method: ``"hutchinson"``; ``"hutch++"`` or ``"xtrace"``, which are more accurate where few eigenvalues dominate;
            ``"xnystrace"``, twice as good as that for a positive operator.
        operator: as for ``spectrum``.
        spectrum: of this problem at this point, for Hutchinson's method: its pairs are counted exactly and projected out of the
            probes.
        samples: as for ``spectrum``; what ``"auto"`` holds to the tolerance is the error of the trace from the data.
        data_tol: relative error from the data that ``samples="auto"`` is to reach.
        seed: of the probes.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: the method is unknown, or does not go with a spectrum.
        OperatorError: there are too few probes or too many, the operator is not positive where it must be, or the spectrum is
            of another problem or holds no eigenvectors.
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990).
        Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation" (2021).
        Epperly, Tropp, Webber, "XTrace: making the most of every sample in stochastic trace estimation" (2024).
    """
    surveyed(problem)
    whole(probes=probes, seed=seed)
    if method not in get_args(Method):
        raise ProblemError(f"Expected method to be one of {', '.join(map(repr, get_args(Method)))}, found {method!r}.")
    if spectrum is not None and (method != "hutchinson" or samples is not None):
        raise ProblemError(
            f"Expected a spectrum with method='hutchinson' on the data it was measured on, found {method=}, {samples=}. The "
            "other methods find the range of the operator themselves."
        )
    measure = partial(_trace, probes=probes, method=method, operator=operator, spectrum=spectrum, seed=seed, step=step)
    if samples is None:
        return measure(problem)
    quick = partial(measure, probes=min(probes, 8), method="hutchinson")
    part = enough(problem, samples, lambda part: _precision(quick(part)), tol=data_tol, seed=seed)
    found = measure(part.problem)
    # The other methods have no error from the data: that of Hutchinson's on the same part stands for it.
    note = part.note(_precision(found).relative if method == "hutchinson" else part.relative)
    return found.replace(cost=found.cost + part.cost, notes=(*found.notes, *note))


def _precision(found: Trace) -> Precision:
    return Precision(relative_error(found.value, found.data_stderr), found.cost)


def _trace(
    problem: Problem,
    *,
    probes: int,
    method: Method,
    operator: str,
    spectrum: Spectrum | None,
    seed: int,
    step: int | None,
) -> Trace:
    started = time.perf_counter()
    H = operator_of(problem, operator)
    layers = problem.layout.layer_slices if method == "hutchinson" else {}
    found, data_stderr = _estimate(
        problem, H, operator=operator, probes=probes, method=method, spectrum=spectrum, seed=seed
    )
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


def _estimate(
    problem: Problem,
    H: ProblemOperator,
    *,
    operator: str,
    probes: int,
    method: Method,
    spectrum: Spectrum | None,
    seed: int,
) -> tuple[TraceEstimate, float]:
    """The trace, and its error from the data where that is known."""
    if method != "hutchinson":
        estimator = {"hutch++": hutchpp, "xtrace": xtrace, "xnystrace": xnystrace}[method]
        return estimator(H, products=probes, seed=seed, memory=problem.memory), float("nan")
    parts = tuple(problem.layout.layer_slices.values())
    options: dict[str, Any] = {"probes": probes, "seed": seed, "parts": parts, "memory": problem.memory}
    if spectrum is not None:
        known = known_pairs(problem, spectrum, H, operator=operator)
        return hutchinson(H, deflate=known, **options), float("nan")
    A = Remembering(H)
    found = hutchinson(A, **options)
    without = A.left_out.mean(dim=1).numpy()
    return found, float(jackknife_stderr(without, whole=np.asarray(found.value), weights=A.weights.numpy()))


def _samples(found: TraceEstimate) -> int:
    """Random samples behind an estimate: Hutch++ spends other products on its sketch, all where that spans the space."""
    exact = len(found.samples) == 1 and found.stderr == 0  # the error from a single sample is not known
    return 0 if exact else len(found.samples)
