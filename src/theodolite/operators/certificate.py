"""The certificate of a problem's Hessian: symmetric, and equal to finite differences of the gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theodolite.errors import DerivativeError, TheodoliteError
from theodolite.operators.finite_differences import (
    asymmetry,
    direction,
    distance_from_differences,
    jittered,
    norm,
)
from theodolite.operators.graphs import GradientGraph, OutputGraph, Tensors
from theodolite.operators.memory import counting_saved_bytes
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import move, split
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.problem import gradients

PIECE = 16
FEWEST, FEWEST_COUPLED = 2, 8  # the statistics of two samples put every unit at ±1, where derivatives vanish


@dataclass(frozen=True)
class Certificate:
    """What was checked before the first product of a problem, on up to 16 samples.

    Args:
        symmetry: |uᵀHv − vᵀHu| / (‖Hu‖ + ‖Hv‖) for random unit u and v, in the problem's dtype.
        difference: relative distance of Hv from central differences of the gradient, in ``dtype``, at the best step; NaN
            where kinks or rounding spoil every step, so that differences say nothing.
        dtype: in which the difference was taken; float64 unless the model cannot run in it.
        bytes_per_sample: what the retained graph takes.
        seconds: what a product took on those samples.
        samples: how many there were.
    """

    symmetry: float
    difference: float
    dtype: str
    bytes_per_sample: float
    seconds: float
    samples: int

    def __str__(self) -> str:
        difference = (
            f"equal to finite differences of the gradient to {self.difference:.0e} ({self.dtype})"
            if self.difference == self.difference
            else "finite differences inconclusive (kinks or rounding at every step)"
        )
        return f"Hessian checked on {self.samples} samples: symmetric to {self.symmetry:.0e}, {difference}"


def certify(problem: Problem) -> Certificate:
    """Check the Hessian product of ``problem`` on its first samples.

    Cost: about ten gradients of at most 16 samples; ten more where the first difference disagrees; again on more samples
    where few of them fail.

    Raises:
        DerivativeError: the product is not symmetric, or is not the derivative of the gradient, as with custom autograd
            functions that hide a tensor from autograd.
    """
    try:
        return _certified(problem)
    except DerivativeError:
        # In models that round to float32 inside, the curvature of two samples may drown in rounding: ask more of them.
        return _certified(problem, fewest=FEWEST_COUPLED)


def _certified(problem: Problem, *, fewest: int = FEWEST) -> Certificate:
    piece = first_piece(problem, fewest=fewest)
    symmetry, nbytes, seconds = _symmetry(problem, piece)
    refuse_asymmetric(problem, symmetry, suspects=lambda: suspects(problem, piece))
    difference, dtype = in_double(problem, lambda found: _difference_in(found, fewest=fewest))
    samples = piece.samples
    name = str(dtype).removeprefix("torch.")
    return Certificate(symmetry, difference, name, nbytes / samples, seconds, samples)


def refuse_asymmetric(
    problem: Problem, found: float, *, suspects: Callable[[], str], way_out: str = "engine='difference', or the plain"
) -> None:
    """Raise if the relative asymmetry found of a Hessian is more than rounding.

    Raises:
        DerivativeError: it is.
    """
    if found > (1e-3 if problem.dtype == torch.float64 else 1e-1):
        raise DerivativeError(
            f"Expected a symmetric Hessian, found |uᵀHv − vᵀHu| at {found:.1e} of its size. A second derivative in the "
            f"graph is wrong{suspects()}. Use {way_out} torch version of that layer."
        )


def first_piece(problem: Problem, *, fewest: int = FEWEST) -> Chunk:
    """The first samples of the data, enough to check derivatives and measure memory, few enough to cost little."""
    batch = problem.batches.first()
    least = FEWEST_COUPLED if problem.coupled else fewest
    batch = split(batch, min(PIECE, max(least, problem.objective.samples(batch) // 4)))[0]
    return Chunk(0, move(batch, device=problem.device, dtype=problem.cast), problem.objective.samples(batch))


def _symmetry(problem: Problem, piece: Chunk) -> tuple[float, int, float]:
    """Asymmetry, bytes that the graph saves, and seconds of one product."""
    point = problem.point()
    u, v = (direction(problem, point.leaves, seed=seed) for seed in (1, 2))

    def products(model: nn.Module) -> tuple[float, int, float]:
        with counting_saved_bytes((*point.leaves, *point.constants.values())) as saved:
            graph = _graph(problem, model, piece, point)
        start = clock(problem)
        Hu = graph.vector(u)
        seconds = clock(problem) - start
        Hv = graph.vector(v)
        return asymmetry(u, v, Hu, Hv), saved.total, seconds

    return problem.call(products, point)


def in_double(problem: Problem, difference: Callable[[Problem], float]) -> tuple[float, torch.dtype]:
    """A comparison with finite differences in float64, in the problem's own type where the model cannot run in it."""
    try:
        return difference(problem.replace(dtype=torch.float64)), torch.float64
    except TheodoliteError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if problem.dtype == torch.float64 or is_missing_derivative(error):
            raise
        # A kernel without float64: check in the model's own precision, more coarsely.
        return difference(problem), problem.dtype


def _difference_in(problem: Problem, *, fewest: int) -> float:
    piece, point = first_piece(problem, fewest=fewest), _jittered(problem)
    v = _without_padding(problem, direction(problem, point.leaves, seed=3))

    def product(model: nn.Module) -> tuple[Tensors, float]:
        gradient = _gradient(problem, model, piece, point, create_graph=True)
        return GradientGraph(gradient, point.leaves, 1.0).vector(v), float(norm(gradient))

    exact, slope = problem.call(product, point)

    def gradient_at(moved: Tensors) -> Tensors:
        there = problem.displaced(moved)
        return problem.call(lambda model: _gradient(problem, model, piece, there), there)

    return distance_from_differences(
        exact, slope, gradient_at, point.leaves, v, suspects=lambda: suspects(problem, piece)
    )


def _jittered(problem: Problem) -> Point:
    """A point 1e-3 of ‖θ‖ away: freshly initialised networks have units exactly on the kink of their ReLU."""
    return problem.displaced(jittered(problem, problem.point().leaves))


def _graph(problem: Problem, model: nn.Module, piece: Chunk, point: Point) -> GradientGraph:
    return GradientGraph(_gradient(problem, model, piece, point, create_graph=True), point.leaves, 1.0)


def _gradient(problem: Problem, model: nn.Module, piece: Chunk, point: Point, *, create_graph: bool = False) -> Tensors:
    """Gradient of the mean over the piece, so that scales do not depend on how many samples it has."""
    total, weight = problem.objective.evaluate(model, piece.batch)
    if not torch.isfinite(total):
        raise non_finite_loss(float(total.detach()), where="the first batch", parameters=problem.parameters)
    return gradients(total / max(weight, 1e-12), point.leaves, create_graph=create_graph)


def _without_padding(problem: Problem, v: Tensors) -> Tensors:
    """The direction without the rows that ``padding_idx`` keeps out of the gradient, which differences would see move."""
    position = {
        id(parameter): problem.layout.names.index(name)
        for name, parameter in problem.model.named_parameters()
        if name in problem.layout.names
    }
    for module in problem.model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and id(module.weight) in position:
            v[position[id(module.weight)]][module.padding_idx] = 0.0
    return v


def suspects(problem: Problem, piece: Chunk, *, loss: Callable[[nn.Module], Tensor] | None = None) -> str:
    """Names of Python autograd functions in the graph of a loss, by default that of the piece; the usual culprits."""
    point = problem.point()

    def names(model: nn.Module) -> list[str]:
        total = problem.objective.evaluate(model, piece.batch)[0] if loss is None else loss(model)
        found, stack, seen = set(), [total.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(type(node), "_forward_cls"):
                found.add(type(node).__name__.removesuffix("Backward"))
            stack += [parent for parent, _ in node.next_functions]
        return sorted(found)

    found = problem.call(names, point)
    return f" (custom functions in the graph: {', '.join(found)})" if found else ""


def missing_derivative(error: BaseException, *, by_difference: bool = True) -> DerivativeError:
    """The error for an operation whose backward cannot be differentiated.

    Args:
        error: what torch said.
        by_difference: whether the operator can also be had by differences of the gradient, as the Hessian can.
    """
    engine = "Use engine='difference' (central differences of the gradient, which also see kinks), or replace"
    return DerivativeError(
        f"Expected every operation of model and criterion to be twice differentiable, found one that is not: {error}. "
        f"{engine if by_difference else 'Replace'} that layer "
        "(nn.EmbeddingBag by nn.Embedding and a mean, a fused kernel by plain torch operations), or take another criterion."
    )


def refuse_wrong_jacobian(problem: Problem, graph: OutputGraph, piece: Chunk) -> None:
    """Check ⟨w, J Jᵀw⟩ = ‖Jᵀw‖² for a random w: J comes from double backward, Jᵀ does not.

    Functions marked ``once_differentiable`` raise no error here: the engine never runs the node that would, and J lacks
    what lies behind it.

    Cost: about three gradients of at most 16 samples, inside ``problem.call``.

    Raises:
        DerivativeError: the two differ.
    """
    forward, backward = graph.adjoint_forms(seed=problem.seed)
    limit = 1e-6 if problem.dtype == torch.float64 else 1e-2
    if abs(forward - backward) > limit * backward:
        raise DerivativeError(
            f"Expected ⟨w, J Jᵀw⟩ to equal ‖Jᵀw‖², found {forward:.6g} and {backward:.6g}: the Jacobian J by double backward "
            f"is wrong{suspects(problem, piece)}. Replace that layer by its plain torch version."
        )


def is_missing_derivative(error: BaseException) -> bool:
    """Whether torch refused because some operation has no second derivative."""
    message = str(error)
    marks = (
        "derivative for",
        "once_differentiable",
        "double backward",
        "does not require grad and does not have a grad_fn",
    )
    return any(mark in message for mark in marks) or isinstance(error, NotImplementedError)


def clock(problem: Problem) -> float:
    """Wall-clock time after the device has finished."""
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)
    return time.perf_counter()
