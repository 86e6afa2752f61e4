"""The Hessian of a problem's loss in its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.operators.certificate import Certificate
from theodolite.operators.graphs import GradientGraph, Graph, Tensors
from theodolite.operators.input_certificate import certify_inputs
from theodolite.operators.stacked import StackedOperator, refuse_sharded
from theodolite.problem import Chunk, Layout, Point, Problem
from theodolite.problem.data import map_tensors, tensors_of
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.objective import CriterionObjective, pair
from theodolite.problem.problem import gradients


class InputHessian(StackedOperator):
    """∂²L/∂x² in all inputs x at once, with L the mean loss over the data: block diagonal, one block a sample.

    Rows and columns follow the data: sample by sample, its floating-point inputs flattened one after the other. One product
    multiplies every sample's block with its own part of the vector. The block of sample i alone is N times the block here, for
    a loss that averages over N samples. BatchNorm on batch statistics fills in blocks between the samples of a batch.

    Before the first product its certificate is made, from the inputs on: symmetry, and agreement with finite differences of the
    gradient in them. ReLU networks have no curvature in their inputs but that of the criterion.

    Cost: a product takes about two gradients on kept graphs, whatever the number of samples.

    Args:
        problem: made with a criterion; its batches are pairs whose inputs have a floating-point tensor with a row a sample.

    Attributes:
        sizes: input entries of a sample, for each batch, or each piece that ``microbatch`` makes of it.
        certificate: what was checked, None before the first product.

    Raises:
        OperatorError: the inputs are not known, or are tokens.
        DerivativeError: at the first product, when a second derivative is missing or wrong.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))])
        >>> InputHessian(problem).shape
        (24, 24)

    References:
        Moosavi-Dezfooli et al., "Robustness via curvature regularization, and vice versa" (2019).
    """

    name = "input hessian"

    def __init__(self, problem: Problem) -> None:
        refuse_sharded(problem)
        if not isinstance(problem.objective, CriterionObjective):
            raise OperatorError(
                "An input Hessian needs batches of (inputs, targets), found a problem made by Problem.from_loss. "
                "Use Problem(model, criterion, batches)."
            )
        self.sizes, entries = [], 0
        for chunk in problem.chunks():
            size = sum(tensor.numel() for tensor in differentiable(chunk))
            self.sizes.append(size // chunk.samples)
            entries += size
        super().__init__(problem, shape=(entries, entries), symmetric=True)
        self.certificate: Certificate | None = None

    def _walk(self, rows: Float[Tensor, "k n"], point: Point) -> Iterator[tuple[Graph, Chunk, Float[Tensor, "k m"]]]:
        """Every chunk with its graph and the products with its part of the vectors."""
        start = 0
        for graph, chunk, buffers in self._visit(point):
            size = sum(leaf.numel() for leaf in graph.leaves)
            yield graph, chunk, self._apply(graph, chunk, rows[:, start : start + size], point, buffers)
            start += size

    def _measure_bytes(self) -> float:
        """From the certificate, which is made here: it builds the same graph."""
        with self._naming_the_way_out():
            self.certificate = certify_inputs(self.problem, inputs=_leaves, loss=_loss)
        return self.certificate.bytes_per_sample

    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        leaves = _leaves(chunk)
        total, weight = _loss(self.problem, model, chunk, leaves)
        return InputGraph(gradients(total, leaves, create_graph=True), leaves, weight)


class InputGraph(GradientGraph):
    """Hessian products of one chunk in its own inputs."""

    def loop(self, rows: Float[Tensor, "k n"], layout: Layout) -> Float[Tensor, "k m"]:
        return torch.stack([self._one(row) for row in rows])

    def block(self, rows: Float[Tensor, "k n"], layout: Layout, *, width: int) -> Float[Tensor, "k m"]:
        return torch.cat([torch.func.vmap(self._one)(piece) for piece in rows.split(width)])

    def _one(self, row: Tensor) -> Tensor:
        """The product with one vector of this chunk's inputs, sample by sample."""
        samples = self.leaves[0].shape[0]
        parts = row.reshape(samples, -1).split([leaf[0].numel() for leaf in self.leaves], dim=1)
        product = self.vector(tuple(part.reshape(leaf.shape) for part, leaf in zip(parts, self.leaves, strict=True)))
        return torch.cat([part.reshape(samples, -1) for part in product], dim=1).reshape(-1)


def differentiable(chunk: Chunk) -> Tensors:
    """Floating-point inputs with a row for each sample.

    Raises:
        OperatorError: there are none.
    """
    inputs = tuple(tensors_of(pair(chunk.batch)[0]))
    found = tuple(tensor for tensor in inputs if _counts(tensor, chunk.samples))
    if not found:
        kinds = ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in inputs) or "no tensor"
        advice = (
            "Turn the tensors, samples first, and back in the model."
            if any(tensor.is_floating_point() for tensor in inputs)
            else "Nothing has a derivative in tokens: give the model their embeddings as inputs "
            "(inputs_embeds=model.get_input_embeddings()(tokens) for models of transformers)."
        )
        raise OperatorError(
            f"Expected floating-point inputs with a row for each of {chunk.samples} samples, found {kinds}. {advice}"
        )
    return found


def with_inputs(chunk: Chunk, given: Sequence[Tensor]) -> Any:
    """The inputs of a chunk with others in the place of those that ``differentiable`` finds."""
    taken = iter(given)
    return map_tensors(pair(chunk.batch)[0], lambda tensor: next(taken) if _counts(tensor, chunk.samples) else tensor)


def _leaves(chunk: Chunk) -> Tensors:
    """Differentiable copies of the inputs that can be differentiated."""
    return tuple(tensor.detach().clone().requires_grad_() for tensor in differentiable(chunk))


def _loss(problem: Problem, model: nn.Module, chunk: Chunk, leaves: Tensors) -> tuple[Tensor, float]:
    """Total and weight of a chunk with the leaves in the place of its inputs."""
    total, weight = problem.objective.evaluate(model, (with_inputs(chunk, leaves), pair(chunk.batch)[1]))
    if not torch.isfinite(total):
        raise non_finite_loss(float(total.detach()), where=f"batch {chunk.index}", parameters=problem.parameters)
    return total, weight


def _counts(tensor: Tensor, samples: int) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 0 and tensor.shape[0] == samples and tensor.numel() > 0
