"""The top eigenspace followed from checkpoint to checkpoint."""

from __future__ import annotations

import numpy as np
import torch

from theodolite.errors import OperatorError
from theodolite.measures.arguments import surveyed
from theodolite.measures.curvature import spectrum
from theodolite.measures.subject import OperatorName
from theodolite.problem import Problem
from theodolite.records import Spectrum, Tracking
from theodolite.records.subspaces import cosines


def track(
    problem: Problem,
    previous: Tracking | Spectrum | None = None,
    *,
    k: int = 5,
    tol: float = 1e-2,
    operator: OperatorName = "hessian",
    seed: int = 0,
    complete: bool = True,
    step: int | None = None,
) -> Tracking:
    """Top eigenpairs from those of an earlier checkpoint, and how far the eigenspace turned since.

    Cost: that of ``spectrum``; a start near the eigenspace spares up to half the products.

    Args:
        problem: at the present checkpoint.
        previous: what was found at the earlier one, None at the start.
        k: number of pairs.
        tol: relative residual to reach.
        operator: as for ``spectrum``.
        seed: of the start vector, or of the random part of a warm one.
        complete: search for missed copies, as for ``spectrum``.
        step: optimiser step, kept in the record.

    Returns:
        A record that the next call takes as ``previous``.

    Raises:
        OperatorError: the earlier eigenvectors were dropped, or are of other parameters or of another operator.

    Example:
        >>> model = torch.nn.Linear(10, 3)
        >>> data = [(torch.randn(64, 10), torch.randint(3, (64,)))]
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), data)
        >>> first = track(problem, k=2, step=0)
        >>> round(track(problem, first, k=2, step=1).overlap, 2)
        1.0

    References:
        Gur-Ari, Roberts, Dyer, "Gradient descent happens in a tiny subspace" (2018).
    """
    surveyed(problem)
    earlier = None if previous is None else _vectors(problem, previous, operator)
    start = None if earlier is None else torch.from_numpy(earlier.copy()).to(problem.device, problem.dtype)
    found = spectrum(
        problem,
        k=k,
        tol=tol,
        operator=operator,
        seed=seed,
        start=start,
        complete=complete,
        keep_vectors_below=2**62,
        step=step,
    )
    assert found.eigenvectors is not None
    before = np.zeros((0, problem.n)) if earlier is None else earlier
    return Tracking(
        step=step,
        cost=found.cost,
        seed=seed,
        notes=found.notes,
        context=found.context,
        eigenvalues=found.eigenvalues,
        residuals=found.residuals,
        converged=found.converged,
        data_stderr=found.data_stderr,
        eigenvectors=found.eigenvectors,
        overlaps=np.square(found.eigenvectors.astype(np.float64) @ before.T.astype(np.float64)),
        angles=np.zeros(0) if earlier is None else np.arccos(cosines(found.eigenvectors, before)),
        earlier=np.zeros(0) if previous is None else previous.eigenvalues,
        earlier_step=None if previous is None else previous.step,
        tol=tol,
        operator=operator,
        size=problem.n,
        parameters=found.parameters,
    )


def _vectors(problem: Problem, previous: Tracking | Spectrum, operator: str) -> np.ndarray:
    if previous.eigenvectors is None:
        raise OperatorError(
            "Expected an earlier record with eigenvectors, found one that dropped them. Measure it with a larger "
            "keep_vectors_below, or by track()."
        )
    names = tuple(name for name, _ in previous.parameters)
    if previous.size != problem.n or names != problem.layout.names or previous.operator != operator:
        raise OperatorError(
            f"Expected an earlier record of the {operator} of the same {problem.n:,} parameters, found the "
            f"{previous.operator} of {previous.size:,}, {', '.join(names[:3])}, … Start anew with previous=None."
        )
    return previous.eigenvectors
