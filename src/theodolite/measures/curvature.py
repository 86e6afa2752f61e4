"""Spectrum, spectral density and trace of a problem's Hessian or Gauss-Newton matrix."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NotConvergedWarning, OperatorError, ProblemError
from theodolite.linalg import Eigenpairs, TraceEstimate, hutchinson, hutchpp, lanczos, misses_eigenvalues, slq
from theodolite.operators import GGN, GradientCovariance, Hessian, ProblemOperator
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Density, Spectrum, Trace
from theodolite.records.jackknife import jackknife_stderr

OperatorName = Literal["hessian", "ggn", "covariance"]
OPERATORS: dict[str, Callable[[Problem], ProblemOperator]] = {
    "hessian": Hessian,
    "ggn": GGN,
    "covariance": GradientCovariance,
}
KEEP_VECTORS = 256 * 2**20
SMALL = 1e-3  # eigenvalues below this share of the largest are judged against it


def spectrum(
    problem: Problem,
    *,
    k: int = 5,
    which: Literal["largest", "smallest", "both"] = "largest",
    tol: float = 1e-3,
    operator: OperatorName = "hessian",
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    complete: bool = True,
    keep_vectors_below: int = KEEP_VECTORS,
    on_step: Callable[[int, float], None] | None = None,
    step: int | None = None,
) -> Spectrum:
    """Extreme eigenpairs by Lanczos, with residuals recomputed from the operator.

    Cost: about 2k to 4k products for the pairs at ``tol=1e-3``, 8 for the search for missed copies, one more for each pair
    to recompute its residual and to take its standard error over the chunks of the data.

    Args:
        problem: what to survey.
        k: number of pairs at each end that is asked for.
        which: ``"largest"``, ``"smallest"``, or ``"both"`` ends (2k pairs, descending).
        tol: relative residual ‖Hv − λv‖ / max(|λ|, 1e-3·radius) to reach, with the radius of the spectrum.
        operator: ``"hessian"``, ``"ggn"`` or ``"covariance"`` (of gradients, the empirical Fisher).
        seed: of the start vector.
        start: vector or block of vectors to start from, e.g. eigenvectors at an earlier checkpoint.
        max_products: stop after so many products, converged or not.
        complete: search for copies of repeated eigenvalues that one start vector does not see, as in the Hessian of a squared
            error in the last layer; 8 products more, and a second search where copies are found.
        keep_vectors_below: drop eigenvectors, with a note, when they take more bytes than this.
        on_step: called with the products so far and the worst residual.
        step: optimiser step, kept in the record.

    Returns:
        A record. Pairs that did not converge are marked, and a NotConvergedWarning is issued.

    Raises:
        OperatorError: k is larger than the number of parameters allows.
        ProblemError: the operator is unknown.
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> spectrum(problem, k=3).eigenvalues.shape
        (3,)

    References:
        Wu, Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems" (2000).
    """
    started = time.perf_counter()
    pairs = 2 * k if which == "both" else k
    if not 1 <= pairs <= problem.n:
        raise OperatorError(
            f"Expected between 1 and {problem.n} eigenpairs, the number of parameters, found {pairs} (k={k}, "
            f"which={which!r}). Ask for {'fewer' if pairs > 1 else 'at least one'}."
        )
    H = _operator(problem, operator)
    search = partial(
        lanczos,
        H,
        k=pairs,
        which=which,
        tol=tol,
        seed=seed,
        max_products=max_products,
        memory=problem.memory,
        on_step=on_step,
    )
    found = search(start=start)
    notes = []
    if complete and found.settled and misses_eigenvalues(H, found, which=which, seed=seed):
        found = search(verify=True)
        notes.append("eigenvalues repeat: a second search found the copies that one vector does not see")
    values, residuals, data_stderr = verified(H, found)
    converged = (residuals <= tol) & found.converged.numpy()
    if not found.settled:
        notes.append("the iteration was cut off: other eigenvalues may belong among these")
        converged[:] = False
    vectors = found.vectors
    kept = vectors.nbytes <= keep_vectors_below
    if not kept:
        notes.append(
            f"eigenvectors dropped: {vectors.nbytes / 2**20:.0f} MiB, above keep_vectors_below={keep_vectors_below / 2**20:.0f} MiB"
        )
    record = Spectrum(
        step=step,
        cost=replace(H.cost, seconds=time.perf_counter() - started),
        seed=seed,
        notes=(*H.notes, *notes),
        context=context_of(problem, H),
        eigenvalues=values,
        residuals=residuals,
        converged=converged,
        data_stderr=data_stderr,
        radius=_radius(found, values),
        eigenvectors=to_numpy(vectors) if kept else None,
        tol=tol,
        which=which,
        operator=operator,
        size=problem.n,
        parameters=tuple(
            (name, tuple(shape)) for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True)
        ),
    )
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {pairs} eigenpairs did not reach a residual of {tol:g} after {found.products} products "
            f"of Lanczos (worst {residuals.max():.1e}). Raise max_products, or tol if that is enough.",
            NotConvergedWarning,
            stacklevel=2,
        )
    return record


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

    Cost: probes·steps products.

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
    H = _operator(problem, operator)
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
    )


def trace(
    problem: Problem,
    *,
    probes: int = 32,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    operator: OperatorName = "hessian",
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
    started = time.perf_counter()
    if method not in ("hutchinson", "hutch++"):
        raise ProblemError(f"Expected method 'hutchinson' or 'hutch++', found {method!r}.")
    H = _operator(problem, operator)
    layers = problem.layout.layer_slices if method == "hutchinson" else {}
    if method == "hutchinson":
        found = hutchinson(H, probes=probes, seed=seed, parts=tuple(layers.values()), memory=problem.memory)
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
        layers=tuple(layers),
        layer_values=found.parts.numpy(),
        layer_stderrs=found.part_stderrs.numpy(),
        probes=_samples(found),
        method=method,
        operator=operator,
        size=problem.n,
    )


def verified(
    H: ProblemOperator, found: Eigenpairs
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Rayleigh quotients, true relative residuals and data errors of eigenvectors, from one more product with each."""
    V = found.vectors.T
    HV, left_out, weights = H.by_chunk(V.contiguous())
    values = (V.double() * HV.double()).sum(0)
    gaps = (HV.double() - V.double() * values).norm(dim=0)
    scale = torch.maximum(values.abs(), torch.full_like(values, SMALL * _radius(found, to_numpy(values))))
    residuals = torch.where(gaps == 0, gaps, gaps / scale)
    errors = jackknife_stderr(to_numpy(left_out), whole=to_numpy(values), weights=to_numpy(weights))
    return to_numpy(values), to_numpy(residuals), errors


def _radius(found: Eigenpairs, values: Float[np.ndarray, " k"]) -> float:
    """The largest |eigenvalue| that the run or its verification met."""
    return max(found.radius, float(np.abs(values).max()))


def _samples(found: TraceEstimate) -> int:
    """Random samples behind an estimate: Hutch++ spends other products on its sketch, all where that spans the space."""
    exact = len(found.samples) == 1 and found.stderr == 0  # the error from a single sample is not known
    return 0 if exact else len(found.samples)


def context_of(problem: Problem, H: ProblemOperator | None = None) -> dict[str, Any]:
    """What a record says of its problem and operator."""
    context = problem.context()
    if H is not None:
        context |= {"engine": H.engine, "chunks": H.chunks}
        if H.blocks != "not yet tried":
            # The way alone: what the timed trial found differs from run to run.
            context["blocks"] = H.blocks.partition(",")[0]
        certificate = getattr(H, "certificate", None)
        if certificate is not None:
            context["certificate"] = str(certificate)
    return context


def _operator(problem: Problem, name: str) -> ProblemOperator:
    if name not in OPERATORS:
        raise ProblemError(f"Expected operator to be one of {', '.join(map(repr, OPERATORS))}, found {name!r}.")
    return OPERATORS[name](problem)
