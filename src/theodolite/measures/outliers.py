"""Outliers of the spectrum against the classes of the data."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.measures import curvature
from theodolite.measures.arguments import surveyed
from theodolite.measures.subject import OperatorName, context_of, operator_of
from theodolite.measures.verification import refuse_elsewhere
from theodolite.operators import Grouped
from theodolite.operators.grouped import By
from theodolite.problem import Problem
from theodolite.records import Cost, Outliers, Spectrum

FOR_EACH_CLASS = 3
DEPENDENT = 1e-6  # of the largest singular value: gradients of classes below it add no direction


def outliers(
    problem: Problem,
    *,
    spectrum: Spectrum | None = None,
    by: By = "targets",
    kappa: float = 10.0,
    operator: OperatorName = "hessian",
    seed: int = 0,
    step: int | None = None,
) -> Outliers:
    """How many eigenvalues stand above the bulk, against the number of classes, and how much of them the class means span.

    The spectrum of a classifier near the end of training is a bulk with about as many outliers as classes. They come from the
    Gauss-Newton part, whose range the gradients of the classes' mean losses span in good part.

    Cost: one gradient and two forward passes, and without ``spectrum`` that of ``spectrum`` with three pairs for each class and
    12 probes; with it one product, to see that it is of this point.

    Args:
        problem: a classifier on its data.
        spectrum: of this problem at this point, with eigenvectors and probes and about three pairs for each class; measured if
            not given.
        by: what the classes are, as for ``Grouped``.
        kappa: an eigenvalue is above the bulk where it lies so many scales above its centre.
        operator: as for ``spectrum``, of which it is taken if that is given.
        seed: of the spectrum.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: the spectrum is of another problem or point, holds no eigenvectors, or is not of the upper end; samples
            are coupled.
        DataError: the labels are not one for each sample.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> outliers(problem).classes
        ('0', '1', '2')

    References:
        Sagun, Evci, Guney, Dauphin, Bottou, "Empirical analysis of the Hessian of over-parametrized neural networks" (2017).
        Papyan, "Traces of class/cross-class structure pervade deep learning spectra" (2020).
    """
    started = time.perf_counter()
    surveyed(problem)
    groups = Grouped(problem, by=by)
    # A class of weight 0 in the criterion has no loss of its own.
    parts = {label: part for label, part in groups.problems.items() if groups.weights[label] > 0}
    cost = Cost(gradients=1.0, forwards=2.0)
    if spectrum is None:
        k = min(FOR_EACH_CLASS * len(parts), problem.n)
        spectrum = curvature.spectrum(problem, k=k, probes=12, operator=operator, seed=seed)
        cost, context = cost + spectrum.cost, spectrum.context
        U = top_vectors(problem, spectrum)
    else:
        U, H = top_vectors(problem, spectrum), operator_of(problem, spectrum.operator)
        refuse_elsewhere(problem, spectrum, H)
        cost, context = cost + H.cost, context_of(problem, H)
    means = torch.stack([part.gradient() for part in parts.values()]).double()
    Q, norms = _span(means), means.norm(dim=1)
    cosines = (means @ means.T / torch.outer(norms, norms)).clamp(-1, 1)
    count, ratio = _gap(spectrum, limit=FOR_EACH_CLASS * len(parts))
    centre, scale = spectrum.bulk if spectrum.nodes is not None else (math.nan, math.nan)
    return Outliers(
        step=step,
        cost=replace(cost, seconds=time.perf_counter() - started),
        seed=spectrum.seed,
        notes=(*spectrum.notes, *_weightless(groups)),
        context=context,
        eigenvalues=spectrum.top,
        converged=spectrum.converged[: len(spectrum.top)],
        shares=(U @ Q.T).square().sum(dim=1).cpu().numpy(),
        count=count,
        ratio=ratio,
        above_bulk=_above_bulk(spectrum, kappa),
        kappa=kappa,
        centre=centre,
        scale=scale,
        classes=tuple(map(str, parts)),
        weights=np.array([groups.weights[label] for label in parts]),
        gradient_norms=norms.cpu().numpy(),
        cosines=cosines.cpu().numpy(),
        rank=len(Q),
        operator=spectrum.operator,
        size=problem.n,
    )


def top_vectors(problem: Problem, spectrum: Spectrum) -> Float[Tensor, "k n"]:
    """The eigenvectors of the upper end."""
    if spectrum.size != problem.n:
        raise OperatorError(
            f"Expected a spectrum of this problem with its {problem.n:,} parameters, found one of {spectrum.size:,}."
        )
    if spectrum.eigenvectors is None or not len(spectrum.top):
        lacks = (
            "no eigenvectors" if spectrum.eigenvectors is None else f"none of the upper end (which={spectrum.which!r})"
        )
        raise OperatorError(
            f"Expected a spectrum with the eigenvectors of its largest eigenvalues, found {lacks}. Measure it with "
            "which='largest' and a larger keep_vectors_below."
        )
    return torch.from_numpy(spectrum.eigenvectors[: len(spectrum.top)].copy()).to(problem.device, torch.float64)


def _span(rows: Float[Tensor, "c n"]) -> Float[Tensor, "r n"]:
    """An orthonormal basis of the span of the rows."""
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    independent: Tensor = basis[sizes > DEPENDENT * sizes.max()]
    return independent


def _gap(spectrum: Spectrum, *, limit: int) -> tuple[int, float]:
    """How many eigenvalues stand above the widest gap, and the ratio of the two beside it."""
    top = spectrum.comparable(limit)
    if len(top) < 2:
        return 0, math.nan
    count = spectrum.gap(limit)
    return count, float(top[count - 1] / top[count])


def _weightless(groups: Grouped) -> tuple[str, ...]:
    without = [str(label) for label, weight in groups.weights.items() if not weight > 0]
    return (f"left out, without weight in the loss: {', '.join(without)}",) if without else ()


def _above_bulk(spectrum: Spectrum, kappa: float) -> int | None:
    if spectrum.nodes is None:
        return None
    try:
        return len(spectrum.outliers(kappa))
    except ValueError:  # all that are known lie above it
        return None
