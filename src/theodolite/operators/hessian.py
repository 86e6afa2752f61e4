"""The Hessian of a problem's loss."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from theodolite.errors import DerivativeError, TheodoliteWarning
from theodolite.operators.certificate import Certificate
from theodolite.operators.difference import DifferenceGraph
from theodolite.operators.graphs import GradientGraph, Graph
from theodolite.operators.problem_operator import ProblemOperator, certificate_of
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.problem import gradients


class Hessian(ProblemOperator):
    """H = ∇²L(θ), the mean over the data, in the selected parameters.

    Before the first product of a problem its certificate is made: symmetry, and agreement with finite differences of the
    gradient. Where double backward does not exist, ``engine="auto"`` falls back to central differences with a warning.

    Cost: a product takes about two gradients on kept graphs, three to four on graphs rebuilt each time.

    Args:
        problem: what to differentiate.

    Raises:
        DerivativeError: at the first product, when the second derivative is missing or wrong.
        NonFiniteError: the loss is NaN or infinite.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> H = Hessian(problem)
        >>> (H @ torch.ones(4)).shape
        torch.Size([4])

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation (1994).
    """

    name = "hessian"
    by_difference = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._difference = problem.engine == "difference"
        self.certificate: Certificate | None = None

    @property
    def engine(self) -> str:
        """How products are computed, in words."""
        return "central differences of the gradient" if self._difference else super().engine

    def _measure_bytes(self) -> float:
        """From the certificate, which is made here: it builds the same graph."""
        if self._difference:
            return 0.0
        known = self.problem.layout.names in self.problem.certificates
        try:
            self.certificate = certificate_of(self.problem)
        except DerivativeError as error:
            if self.problem.engine != "auto":
                raise
            self._fall_back(error, warn=not known)
            return 0.0
        return self.certificate.bytes_per_sample

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        if self._difference:
            return DifferenceGraph(self.problem, chunk, point)
        total, weight = self.problem.objective.evaluate(model, chunk.batch)
        if not torch.isfinite(total):
            raise non_finite_loss(
                float(total.detach()), where=f"batch {chunk.index}", parameters=self.problem.parameters
            )
        return GradientGraph(gradients(total, point.leaves, create_graph=True), point.leaves, weight)

    def _fall_back(self, error: DerivativeError, *, warn: bool) -> None:
        self._difference, self._route = True, "loop"
        note = f"central differences of the gradient, which also see kinks, because the exact product failed: {error}"
        self.notes.append(note)
        if warn:
            warnings.warn(f"Hessian by {note}", TheodoliteWarning, stacklevel=2)
