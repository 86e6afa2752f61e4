"""Eigenpairs against one more product each: Rayleigh quotients, true residuals and errors from the data."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from theodolite.linalg import Eigenpairs
from theodolite.operators import ProblemOperator
from theodolite.problem.arrays import to_numpy
from theodolite.records.jackknife import jackknife_stderr

SMALL = 1e-3  # eigenvalues below this share of the largest are judged against it


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


def radius_of(found: Eigenpairs, values: Float[np.ndarray, " k"]) -> float:
    """The largest |eigenvalue| that the run or its verification met."""
    return max(found.radius, float(np.abs(values).max()))
