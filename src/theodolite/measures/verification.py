"""Eigenpairs against one more product each: Rayleigh quotients, true residuals and errors from the data."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Bool, Float

from theodolite.errors import OperatorError
from theodolite.linalg import Eigenpairs
from theodolite.operators import ProblemOperator
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Spectrum
from theodolite.records.jackknife import jackknife_stderr

SMALL = 1e-3  # eigenvalues below this share of the largest are judged against it
ELSEWHERE = (
    1e-3  # a Rayleigh quotient further from its eigenvalue is of another point: at the same one they differ by rounding
)


def verified(
    H: ProblemOperator, found: Eigenpairs
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Rayleigh quotients, true relative residuals and data errors of eigenvectors, from one more product with each."""
    V = found.vectors.T
    HV, left_out, weights = H.by_chunk(V.contiguous())
    values = (V.double() * HV.double()).sum(0)
    gaps = (HV.double() - V.double() * values).norm(dim=0)
    scale = torch.maximum(values.abs(), torch.full_like(values, SMALL * radius_of(found, to_numpy(values))))
    residuals = torch.where(gaps == 0, gaps, gaps / scale)
    errors = jackknife_stderr(to_numpy(left_out), whole=to_numpy(values), weights=to_numpy(weights))
    return to_numpy(values), to_numpy(residuals), errors


def resolved(
    values: Float[np.ndarray, " k"],
    residuals: Float[np.ndarray, " k"],
    good: Bool[np.ndarray, " k"],
    *,
    which: str,
    radius: float,
) -> Bool[np.ndarray, " k"]:
    """The good pairs of a run that was cut off which are apart from all that is not good.

    Each end stands for itself, from its extreme inwards up to the first pair that is not good: what hides behind that one
    may belong anywhere below. A pair whose error reaches one that is not good may belong to its cluster.
    """
    errors = residuals * np.maximum(np.abs(values), SMALL * radius)
    top = {"largest": len(values), "both": (len(values) + 1) // 2}.get(which, 0)
    inwards = np.concatenate([np.logical_and.accumulate(good[:top]), np.logical_and.accumulate(good[top:][::-1])[::-1]])
    bad = ~good
    reach = errors[:, None] + errors[None, bad]
    apart = (np.abs(values[:, None] - values[None, bad]) > reach).all(axis=1)
    return np.asarray(inwards & apart)


def known_pairs(problem: Problem, spectrum: Spectrum, H: ProblemOperator, *, operator: str) -> Eigenpairs:
    """The eigenpairs of a record as linear algebra takes them.

    Cost: one product.

    Raises:
        OperatorError: the record holds no eigenvectors, or is of another problem, point or operator.
    """
    if spectrum.size != problem.n or spectrum.operator != operator or spectrum.eigenvectors is None:
        without = " without eigenvectors" if spectrum.eigenvectors is None else ""
        raise OperatorError(
            f"Expected the spectrum of the {operator} of this problem's {problem.n:,} parameters with its eigenvectors, found that "
            f"of the {spectrum.operator} of {spectrum.size:,}{without}. Measure it here, with a larger keep_vectors_below."
        )
    refuse_elsewhere(problem, spectrum, H)
    nothing = torch.zeros(0, dtype=torch.float64)
    return Eigenpairs(
        values=torch.from_numpy(spectrum.eigenvalues.copy()),
        vectors=torch.from_numpy(spectrum.eigenvectors.copy()).to(problem.device, problem.dtype),
        residuals=torch.from_numpy(spectrum.residuals.copy()),
        converged=torch.from_numpy(spectrum.converged.copy()),
        settled=True,
        radius=spectrum.radius,
        products=0,
        restarts=0,
        nodes=nothing,
        weights=nothing,
    )


def refuse_elsewhere(problem: Problem, spectrum: Spectrum, H: ProblemOperator) -> None:
    """That the record is of these parameters, and that its strongest eigenvector has its eigenvalue here.

    Cost: one product.

    Raises:
        OperatorError: it is of another architecture, point or data.
    """
    if spectrum.parameters and spectrum.parameters != parameters_of(problem):
        both = zip_longest(spectrum.parameters, parameters_of(problem))
        other, own = next((theirs, ours) for theirs, ours in both if theirs != ours)
        raise OperatorError(
            f"Expected a spectrum of this problem's parameters, found one of others, of as many entries in all: {other} where "
            f"{own} stands here. Measure it here."
        )
    if spectrum.eigenvectors is None or not len(spectrum.eigenvectors):
        return
    strongest = int(np.abs(spectrum.eigenvalues).argmax())
    v = torch.from_numpy(spectrum.eigenvectors[strongest].copy()).to(problem.device, problem.dtype)
    value, here = float(spectrum.eigenvalues[strongest]), float(v.double() @ (H @ v).double())
    if not abs(here - value) <= max(ELSEWHERE, 8 * torch.finfo(problem.dtype).eps) * abs(value):
        raise OperatorError(
            f"Expected a spectrum of this problem at this point, found an eigenvector of λ = {value:.6g} with vᵀHv = {here:.6g} "
            "here. Measure it here, at these weights and on these data."
        )


def parameters_of(problem: Problem) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of each parameter, as a record holds them."""
    return tuple((name, tuple(shape)) for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True))


def radius_of(found: Eigenpairs, values: Float[np.ndarray, " k"]) -> float:
    """The largest |eigenvalue| that the run or its verification met."""
    return max(found.radius, float(np.abs(values).max()))
