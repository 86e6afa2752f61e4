"""The certificate of a Hessian in the inputs: symmetric, and equal to finite differences of the gradient in them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from theodolite.operators.certificate import Certificate, clock, first_piece, in_double, refuse_asymmetric, suspects
from theodolite.operators.finite_differences import asymmetry, direction, distance_from_differences, jittered, norm
from theodolite.operators.graphs import GradientGraph, Tensors
from theodolite.operators.memory import counting_saved_bytes
from theodolite.problem import Chunk, Problem
from theodolite.problem.problem import gradients

# Total and weight of a piece with given inputs.
LossAt = Callable[[Problem, nn.Module, Chunk, Tensors], tuple[Tensor, float]]


def certify_inputs(problem: Problem, *, inputs: Callable[[Chunk], Tensors], loss: LossAt) -> Certificate:
    """Check the product with the Hessian in the inputs on the first samples.

    Cost: as ``certify``.

    Args:
        problem: made with a criterion.
        inputs: of a chunk, those that are differentiated in, requiring gradients.
        loss: as a function of them.

    Raises:
        DerivativeError: the product is not symmetric, or is not the derivative of the gradient.
    """
    piece = first_piece(problem)
    leaves = inputs(piece)
    point = problem.point()

    def products(model: nn.Module) -> tuple[float, int, float]:
        u, v = (direction(problem, leaves, seed=seed) for seed in (1, 2))
        with counting_saved_bytes((*point.leaves, *point.constants.values(), *leaves)) as saved:
            graph = GradientGraph(_gradient(problem, model, piece, leaves, loss, create_graph=True), leaves, 1.0)
        start = clock(problem)
        Hu = graph.vector(u)
        seconds = clock(problem) - start
        return asymmetry(u, v, Hu, graph.vector(v)), saved.total, seconds

    symmetry, nbytes, seconds = problem.call(products, point)
    refuse_asymmetric(problem, symmetry, suspects=_suspects(problem, piece, leaves, loss), way_out="the plain")
    difference, dtype = in_double(problem, lambda wide: _difference_in(wide, inputs, loss))
    name = str(dtype).removeprefix("torch.")
    return Certificate(symmetry, difference, name, nbytes / piece.samples, seconds, piece.samples)


def _difference_in(problem: Problem, inputs: Callable[[Chunk], Tensors], loss: LossAt) -> float:
    piece, point = first_piece(problem), problem.point()
    leaves = jittered(problem, inputs(piece))
    v = direction(problem, leaves, seed=3)

    def product(model: nn.Module) -> tuple[Tensors, float]:
        slope = _gradient(problem, model, piece, leaves, loss, create_graph=True)
        return GradientGraph(slope, leaves, 1.0).vector(v), float(norm(slope))

    def gradient_at(moved: Tensors) -> Tensors:
        return problem.call(lambda model: _gradient(problem, model, piece, moved, loss), point)

    exact, slope = problem.call(product, point)
    return distance_from_differences(
        exact, slope, gradient_at, leaves, v, suspects=_suspects(problem, piece, leaves, loss), way_out="mode='eval'"
    )


def _gradient(
    problem: Problem, model: nn.Module, piece: Chunk, leaves: Tensors, loss: LossAt, *, create_graph: bool = False
) -> Tensors:
    """The gradient of the mean over the piece, so that scales do not depend on how many samples it has."""
    total, weight = loss(problem, model, piece, leaves)
    return gradients(total / max(weight, 1e-12), leaves, create_graph=create_graph)


def _suspects(problem: Problem, piece: Chunk, leaves: Tensors, loss: LossAt) -> Callable[[], str]:
    return lambda: suspects(problem, piece, loss=lambda model: loss(problem, model, piece, leaves)[0])
