"""Hessian products by central differences of the gradient, for what cannot be differentiated twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from theodolite.operators.graphs import Graph, Tensors
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.problem import gradients


class DifferenceGraph(Graph):
    """(∇L(θ + hv) − ∇L(θ − hv)) / 2h on one chunk, h = ε^⅓·(1 + ‖θ‖)/‖v‖.

    It sees the kinks of ReLU and max-pooling that lie inside the step, which the Hessian does not.

    Cost: two gradients a product.
    """

    def __init__(self, problem: Problem, chunk: Chunk, point: Point) -> None:
        total, weight = problem.evaluate(chunk, point, grad=False)
        if not torch.isfinite(total):
            raise non_finite_loss(float(total), where=f"batch {chunk.index}", parameters=problem.parameters)
        super().__init__(point.leaves, weight)
        self._problem, self._chunk, self._point = problem, chunk, point
        norm = torch.sqrt(sum((leaf.detach().double().square().sum() for leaf in point.leaves), torch.zeros(())))
        self._reach = torch.finfo(problem.dtype).eps ** (1 / 3) * (1.0 + float(norm))

    def vector(self, v: Tensors) -> Tensors:
        size = float(torch.sqrt(sum((part.double().square().sum() for part in v), torch.zeros(()))))
        if size == 0.0:
            return tuple(torch.zeros_like(part) for part in v)
        step = self._reach / size
        ahead, behind = self._gradient(v, step), self._gradient(v, -step)
        return tuple((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))

    def _gradient(self, v: Tensors, step: float) -> tuple[Tensor, ...]:
        moved = tuple(
            (leaf.detach() + step * part).requires_grad_() for leaf, part in zip(self._point.leaves, v, strict=True)
        )
        there = self._problem.displaced(moved)

        def differentiate(model: nn.Module) -> tuple[Tensor, ...]:
            total, _ = self._problem.objective.evaluate(model, self._chunk.batch)
            return gradients(total, moved)

        return self._problem.call(differentiate, there, chunk=self._chunk.index)
