"""The Fisher information of a problem: exact, by sampled targets, or by the observed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.operators.covariance import refuse_coupled_samples, shares_graph
from theodolite.operators.graphs import Graph, SandwichGraph, Tensors
from theodolite.operators.outputs import outputs_of
from theodolite.operators.problem_operator import ProblemOperator, rows_of
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.predictive import Predictive, has_density, no_density, predictive
from theodolite.records import Estimate

Kind = Literal["exact", "mc", "empirical"]
Same = TypeVar("Same", bound="Fisher")


class Fisher(ProblemOperator):
    """F = Σ E[∇ℓ ∇ℓᵀ] / weight, ℓ the negative log-likelihood of a target and E over targets y of one of three kinds.

    ``"exact"``: y as the model predicts it, in closed form. It equals the GGN for cross-entropy (classes from the softmax), binary
    cross-entropy (bits), and squared error (a Gaussian of variance ½, of which the squared error is the negative log-likelihood).
    ``"mc"``: ``draws`` of each target from the model's prediction, fixed by the seed, so that all products are with one
    matrix. Unbiased; targets of different positions and elements are drawn independently, and their products, which are zero in
    expectation, are left out.
    ``"empirical"``: y as observed, which is no Fisher information but ``GradientCovariance``: the tokens of a sample are summed.

    Where a sample has several terms in the loss (tokens, positions, elements), the kinds differ in scale. With g_it the
    gradient of term t of sample i, W the number (or weight) of all terms and N the samples, the first two are
    Σ_i Σ_t E[g_it g_itᵀ] / W and the last is N/W² · Σ_i (Σ_t g_it)(Σ_t g_it)ᵀ: T times smaller for T unrelated terms a sample,
    as large where all terms of a sample have one gradient.

    Class weights, weights of elements and ignored positions count as in the problem: they say how often a target counts.

    Cost: a product takes about 1.5 to 3 gradients on kept graphs; ``"mc"`` keeps ``draws`` tensors of the size of the outputs.

    Args:
        problem: made with a criterion, or with ``from_loss`` of a model of transformers and batches that have ``labels``.
        kind: which targets.
        draws: of each target, for ``"mc"``.
        seed: of the draws, for ``"mc"``; they also depend on how the data is cut into batches.

    Raises:
        OperatorError: the criterion is not the logarithm of a known density, the outputs are not known, or the samples of a
            batch are coupled and the kind is ``"empirical"``. The others are of all targets of a batch together, independent
            given its inputs, and equal the GGN with BatchNorm on batch statistics too.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))])
        >>> v = torch.arange(8.0)
        >>> sampled = Fisher(problem, kind="mc", draws=64).quadratic(v)
        >>> abs(sampled.value - Fisher(problem).quadratic(v).value) < 5 * sampled.stderr
        True

    References:
        Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation" (2019).
        Martens, "New insights and perspectives on the natural gradient method" (2020).
    """

    name = "fisher"

    def __init__(self, problem: Problem, *, kind: Kind = "exact", draws: int = 8, seed: int = 0) -> None:
        if kind not in get_args(Kind):
            raise OperatorError(f"Expected kind to be one of {', '.join(map(repr, get_args(Kind)))}, found {kind!r}.")
        refuse_fractions(draws=draws)
        if draws < 1:
            raise OperatorError(f"Expected at least 1 draw of each target, found draws={draws}.")
        if kind == "empirical":
            refuse_coupled_samples(problem)
        else:
            self._outputs = outputs_of(problem)
            if not has_density(self._outputs.loss):
                raise no_density(self._outputs.loss)
        super().__init__(problem)
        self.kind: Kind = kind
        self.draws = draws
        self.seed = seed

    def quadratic(self, v: Float[Tensor, " n"]) -> Estimate:
        """vᵀFv, with the standard error that the draws of ``"mc"`` leave in it, given the data.

        The error is the standard deviation of the draws in closed form, not an estimate from them, and known for one draw too.

        Cost: one product.

        Returns:
            The error is 0 for the kinds that draw nothing.
        """
        if self.kind != "mc":
            return Estimate(float(v.double() @ (self @ v).double()), 0.0)
        self._refuse_unusable(v)
        rows, sums = rows_of(v[:, None]), []
        parts = self.problem.layout.unflatten(rows[0])
        with self.problem.session(), self._together(rows):
            point = self._prepare()
            for graph, chunk, buffers in self._visit(point):
                assert isinstance(graph, SampledGraph)

                def moments(_: nn.Module, graph: SampledGraph = graph) -> tuple[float, float]:
                    return graph.moments(parts)

                sums.append((*self.problem.call(moments, point, chunk=chunk.index, buffers=buffers), graph.weight))
        self.products += 1
        total, variance, weights = self.problem.ranks.join(torch.tensor(sums, dtype=torch.float64)).T
        weight = self.problem.total_weight(weights)
        return Estimate(float(total.sum()) / weight, float(variance.sum()) ** 0.5 / weight)

    def _on(self: Same, problem: Problem) -> Same:
        return type(self)(problem, kind=self.kind, draws=self.draws, seed=self.seed)

    def _mean_scale(self, weight: float, samples: int) -> float:
        return samples / weight**2 if self.kind == "empirical" else 1.0 / weight

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        if self.kind == "empirical":
            return shares_graph(self.problem, model, chunk, point)
        loss, targets = self._outputs.loss, self._outputs.targets(chunk.batch)
        outputs = self._outputs.tensor(model, chunk.batch)
        weight = loss.weight(outputs, targets)
        if self.kind == "exact":
            return SandwichGraph(outputs, point.leaves, weight, loss.curvature(outputs, targets))
        predicted = predictive(loss, outputs, targets)
        generator = torch.Generator().manual_seed(
            self.seed * 1_000_003 + self.problem.ranks.rank * 500_009 + chunk.index
        )
        scores = [predicted.score(predicted.sample(generator)) for _ in range(self.draws)]
        return SampledGraph(outputs, point.leaves, weight, predicted, scores)


class SampledGraph(SandwichGraph):
    """Products with Σ Jᵀ s sᵀ J, averaged over draws of the scores s, the products between different targets left out."""

    def __init__(
        self, outputs: Tensor, leaves: Tensors, weight: float, predicted: Predictive, scores: list[Tensor]
    ) -> None:
        super().__init__(outputs, leaves, weight, _mean_outer(predicted.per_target, scores))
        self.held += len(scores) * outputs.nbytes
        self._predicted, self._scores = predicted, scores

    def moments(self, v: Tensors) -> tuple[float, float]:
        """vᵀFv of this chunk, not divided by the weight, and its variance over draws."""
        pushed = self.push(v)
        form = sum(float(self._predicted.per_target(score * pushed).double().square().sum()) for score in self._scores)
        draws = len(self._scores)
        return form / draws, float(self._predicted.spread(pushed).double().sum()) / draws


def _mean_outer(per_target: Callable[[Tensor], Tensor], scores: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """u ↦ mean over draws of s (sᵀu)."""

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for score in scores:
            total = total + score * per_target(score * vector)
        return total / len(scores)

    return product
