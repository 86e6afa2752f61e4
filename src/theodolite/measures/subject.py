"""What a curvature measure decomposes: an operator of the problem by name, and what its record says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.linalg import LinearOperator
from theodolite.linalg.vectors import is_finite
from theodolite.operators import GGN, GradientCovariance, Hessian, ProblemOperator
from theodolite.problem import Problem

OperatorName = Literal["hessian", "ggn", "covariance"]
OPERATORS: dict[str, Callable[[Problem], ProblemOperator]] = {
    "hessian": Hessian,
    "ggn": GGN,
    "covariance": GradientCovariance,
}
CURVATURES = ("hessian", "ggn")


def operator_of(problem: Problem, name: str) -> ProblemOperator:
    """An operator of a problem by name.

    Raises:
        ProblemError: there is none of that name.
    """
    if name not in OPERATORS:
        fisher = (
            " A Fisher is 'ggn' for cross-entropy, binary cross-entropy and squared error and 'covariance' with the targets of the "
            "data; fisher_spectrum(problem, kind=...) has its whole spectrum, fisher_trace(problem) its trace."
        )
        raise ProblemError(
            f"Expected operator to be one of {', '.join(map(repr, OPERATORS))}, found {name!r}.{fisher if name == 'fisher' else ''}"
        )
    return OPERATORS[name](problem)


def refuse_covariance(name: str) -> None:
    """That an operator is a curvature of the loss.

    Raises:
        ProblemError: it is another one, or there is none of that name.
    """
    if name not in CURVATURES:
        raise ProblemError(f"Expected operator to be one of {', '.join(map(repr, CURVATURES))}, found {name!r}.")


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


@final
class Remembering(LinearOperator):
    """An operator that keeps, of every vector it multiplies, the quadratic form with each chunk of the data left out.

    Sums of them are what an estimate made of these forms would be without each chunk, at no product more.

    Args:
        operator: what to multiply with.
    """

    def __init__(self, operator: ProblemOperator) -> None:
        super().__init__(
            shape=operator.shape, dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric
        )
        self.operator = operator
        self.weights = torch.zeros(0, dtype=torch.float64)
        self._left_out: list[Tensor] = []

    @property
    def left_out(self) -> Float[Tensor, "c p"]:
        """vᵀAv without each of c chunks, for all p vectors so far, on the CPU."""
        return torch.cat(self._left_out, dim=1).double().cpu()

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        product, left_out, self.weights = self.operator.by_chunk(V)
        if not is_finite(product):
            return self.operator @ V  # which raises and says where
        self._left_out.append(left_out)
        return product
