"""Curvature of the loss of each class or domain by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from theodolite.errors import OperatorError
from theodolite.measures.arguments import surveyed
from theodolite.measures.spectra import Question
from theodolite.measures.subject import OPERATORS, context_of, refuse_covariance
from theodolite.operators import Grouped
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.problem.arguments import real, whole
from theodolite.records import Classwise, Cost, Spectrum

APART = 1_000_003  # between the seeds of two groups


def classwise(
    problem: Problem,
    *,
    by: By = "targets",
    tol: float = 1e-2,
    probes: int = 8,
    steps: int = 30,
    operator: Literal["hessian", "ggn"] = "hessian",
    seed: int = 0,
    step: int | None = None,
) -> Classwise:
    """Largest and smallest eigenvalue, trace and negative mass of each class's or domain's own loss.

    A minimum of the whole loss may be a saddle of the loss of a rare class, which escapes it when that class is weighed up.

    Cost: as one ``spectrum`` of two pairs with ``probes``, 40 to 60 products, as each sample lies in one group; and two forward
    passes.

    Args:
        problem: the whole; its samples must not be coupled.
        by: ``"targets"`` for integer class targets, labels, one for each sample, or a function from a batch to its labels.
        tol: relative residual of the eigenvalues.
        probes: random vectors for each trace.
        steps: least number of Lanczos steps, nodes of each density.
        operator: ``"hessian"`` or ``"ggn"``.
        seed: of start vectors and probes, from which each group has its own.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: there is no such operator.
        OperatorError: samples are coupled, or the problem has fewer than two parameters.
        DataError: the labels are not one for each sample.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> classwise(problem, probes=2).groups
        ('0', '1', '2')

    References:
        Rangwani et al., "Escaping saddle points for effective generalization on class-imbalanced data" (2022).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(probes=probes, seed=seed)
    real(tol=tol)
    if problem.n < 2:
        raise OperatorError(f"Both ends of a spectrum take two parameters or more, found {problem.n}.")
    refuse_covariance(operator)
    grouped = Grouped(problem, by=by, operator=OPERATORS[operator])
    question = Question(
        k=2,
        which="both",
        tol=tol,
        probes=max(probes, 1),
        steps=steps,
        operator=operator,
        halves=False,
        seed=seed,
        max_products=None,
        complete=False,
        keep_vectors_below=0,
        on_step=None,
    )
    # A class of weight 0 in the criterion has no loss of its own.
    found = [
        # Probes of its own for each group, so that the errors of their traces add up in squares.
        replace(question, seed=seed + APART * place).answer(part, None, quiet=True)
        if grouped.weights[label] > 0
        else None
        for place, (label, part) in enumerate(grouped.problems.items())
    ]
    samples = np.array(list(grouped.samples.values()))

    def each(read: Callable[[Spectrum], float]) -> Float[np.ndarray, " g"]:
        return np.array([np.nan if spectrum is None else read(spectrum) for spectrum in found])

    return Classwise(
        step=step,
        cost=replace(_together(found, samples), seconds=time.perf_counter() - started),
        seed=seed,
        context=context_of(problem) | {"groups": len(found)},
        groups=tuple(map(str, grouped.problems)),
        samples=samples,
        weights=np.array(list(grouped.weights.values())),
        losses=np.array(list(grouped.losses.values())),
        largest=each(lambda spectrum: spectrum.max),
        smallest=each(lambda spectrum: spectrum.min),
        largest_stderrs=each(lambda spectrum: spectrum.data_stderr[0]),
        smallest_stderrs=each(lambda spectrum: spectrum.data_stderr[-1]),
        converged=each(lambda spectrum: float(spectrum.all_converged)) == 1.0,
        traces=each(lambda spectrum: spectrum.trace),
        trace_stderrs=each(lambda spectrum: spectrum.trace_stderr),
        negative_masses=each(lambda spectrum: spectrum.negative_mass.value),
        probes=max(spectrum.probes for spectrum in found if spectrum is not None),
        tol=tol,
        operator=operator,
        size=problem.n,
    )


def _together(found: Sequence[Spectrum | None], samples: np.ndarray) -> Cost:
    """The passes over all groups in passes over the whole data."""
    total = Cost(forwards=2.0)
    for spectrum, share in zip(found, (samples / samples.sum()).tolist(), strict=True):
        if spectrum is not None:
            total += Cost(products=spectrum.cost.products * share, gradients=spectrum.cost.gradients * share)
    return total
