"""Directions of extreme curvature."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NotConvergedWarning, ProblemError
from theodolite.landscapes.directions.vectors import one_of
from theodolite.linalg import Eigenpairs, lanczos
from theodolite.operators import GGN, Hessian, ProblemOperator
from theodolite.problem import Problem
from theodolite.records import Spectrum

End = Literal["largest", "smallest", "both"]
Operator = Literal["hessian", "ggn"]


def eigenvectors(
    problem: Problem,
    *,
    k: int = 1,
    which: End = "largest",
    operator: Operator = "hessian",
    spectrum: Spectrum | None = None,
    tol: float = 1e-3,
    seed: int = 0,
) -> Float[Tensor, "k n"]:
    """Unit eigenvectors of the Hessian or GGN at θ, the outermost first, from a spectrum or computed here.

    Of either sign the one is taken in which the entry of largest size is positive.

    Cost: none with a spectrum, else about 2k to 4k + 20 products.

    Args:
        problem: what is surveyed.
        k: how many.
        which: of the ``"largest"`` eigenvalues; of the ``"smallest"``, the most negative first; or of ``"both"`` ends, the first
            from the top, the second from the bottom, and so on.
        operator: ``"hessian"`` or ``"ggn"``.
        spectrum: of the same problem with its eigenvectors.
        tol: relative residual that is asked for where they are computed.
        seed: of the start vector then.

    Returns:
        One a row; ``tuple(...)`` of two rows spans a plane.

    Raises:
        ProblemError: the spectrum is of other parameters or another operator, holds no eigenvectors or too few of this end.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> eigenvectors(problem, k=2).shape
        torch.Size([2, 4])
    """
    if spectrum is None:
        return outermost(problem, k=k, which=which, operator=operator, tol=tol, seed=seed)[0].vectors
    one_of("which", which, get_args(End))
    _refuse_foreign(problem, spectrum, k=k, which=which, operator=operator)
    assert spectrum.eigenvectors is not None
    rows = _outermost_first(len(spectrum.eigenvalues), k=k, which=which)
    if not spectrum.converged[rows].all():
        warnings.warn(
            f"{int((~spectrum.converged[rows]).sum())} of {k} eigenvectors of the given spectrum did not converge (residual "
            f"{float(spectrum.residuals[rows].max()):.1e}). Measure it with more max_products.",
            NotConvergedWarning,
            stacklevel=2,
        )
    return _upright(torch.from_numpy(spectrum.eigenvectors[rows]).to(problem.device, problem.dtype))


def outermost(
    problem: Problem, *, k: int, which: End, operator: Operator, tol: float, seed: int
) -> tuple[Eigenpairs, ProblemOperator]:
    """The outermost eigenpairs with their residuals, in the order and sign of ``eigenvectors``, and what computed them."""
    one_of("which", which, get_args(End))
    one_of("operator", operator, get_args(Operator))
    H = GGN(problem) if operator == "ggn" else Hessian(problem)
    found = lanczos(H, k=k, which=which, tol=tol, seed=seed, memory=problem.memory)
    if not bool(found.converged.all()):
        warnings.warn(
            f"{int((~found.converged).sum())} of {k} eigenvectors did not reach a residual of {tol:g} (worst "
            f"{float(found.residuals.max()):.1e}): the curvature along them is not extreme. Raise tol, or give a spectrum.",
            NotConvergedWarning,
            stacklevel=3,
        )
    rows = torch.from_numpy(_outermost_first(k, k=k, which=which))
    pairs = Eigenpairs(
        values=found.values[rows],
        vectors=_upright(found.vectors[rows.to(found.vectors.device)]),
        residuals=found.residuals[rows],
        converged=found.converged[rows],
        settled=found.settled,
        radius=found.radius,
        products=found.products,
        restarts=found.restarts,
        nodes=found.nodes,
        weights=found.weights,
    )
    return pairs, H


def _outermost_first(count: int, *, k: int, which: End) -> np.ndarray:
    """Rows of descending eigenvalues, from the outside."""
    top, bottom = np.arange(count), np.arange(count)[::-1]
    if which == "both":
        return np.stack([top, bottom], axis=1).reshape(-1)[:k]
    return np.array((top if which == "largest" else bottom)[:k])


def _upright(vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def _refuse_foreign(problem: Problem, spectrum: Spectrum, *, k: int, which: End, operator: str) -> None:
    own = tuple((name, tuple(shape)) for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True))
    if spectrum.operator != operator or spectrum.size != problem.n or spectrum.parameters not in ((), own):
        raise ProblemError(
            f"Expected the spectrum of the {operator} in this problem's {problem.n:,} parameters, found that of the "
            f"{spectrum.operator} in {spectrum.size:,} (of {', '.join(name for name, _ in spectrum.parameters[:3]) or 'unnamed'})."
        )
    held = 0 if spectrum.eigenvectors is None else len(spectrum.eigenvectors)
    ends = {"both": ("both",), "largest": ("largest", "both"), "smallest": ("smallest", "both")}[which]
    # Of both ends the larger half is from the top.
    shares = {"largest": (held + 1) // 2, "smallest": held // 2, "both": held}
    available = shares[which] if spectrum.which == "both" else held
    if spectrum.which not in ends or k > available:
        raise ProblemError(
            f"Expected a spectrum with {k} eigenvectors of the {which} eigenvalues, found {held} of the {spectrum.which}. Measure "
            f"spectrum(problem, k={k}, which={which!r}) with keep_vectors_below large enough."
        )
