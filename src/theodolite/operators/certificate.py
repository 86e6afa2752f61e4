"""The certificate of a problem's Hessian: symmetric, and equal to finite differences of the gradient."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from theodolite.errors import DerivativeError, TheodoliteError
from theodolite.operators.graphs import GradientGraph, OutputGraph, Tensors
from theodolite.operators.memory import counting_saved_bytes
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.data import move, split
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.problem import gradients

PIECE, FEWEST = 16, 8
# Steps relative to 1 + ‖θ‖, in the order in which they are tried. A kink of ReLU or max-pooling is crossed inside a step
# with a probability proportional to it, and then spoils the difference at that step only; a model that computes its loss in
# float32 whatever its own type, as those of transformers do, is too coarse for small steps; a wrong derivative disagrees at
# every step.
STEPS = {torch.float64: (1e-6, 1e-7, 1e-8, 1e-5, 1e-4, 1e-3), torch.float32: (1e-3, 1e-2, 1e-4)}
JITTER = 1e-3
TOLERANCE = {torch.float64: 1e-3, torch.float32: 5e-2}
ROUNDED = 5e-2  # a wrong derivative is further off: custom functions that hide a tensor lose a half


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

    Cost: about ten gradients of at most 16 samples; ten more where the first difference disagrees.

    Raises:
        DerivativeError: the product is not symmetric, or is not the derivative of the gradient, as with custom autograd
            functions that hide a tensor from autograd.
    """
    piece = first_piece(problem)
    symmetry, nbytes, seconds = _symmetry(problem, piece)
    limit = 1e-3 if problem.dtype == torch.float64 else 1e-1
    if symmetry > limit:
        raise DerivativeError(
            f"Expected a symmetric Hessian, found |uᵀHv − vᵀHu| at {symmetry:.1e} of its size. A second derivative in the "
            f"graph is wrong{_suspects(problem, piece)}. Use engine='difference', or the plain torch version of that layer."
        )
    difference, dtype = _difference(problem)
    samples = piece.samples
    name = str(dtype).removeprefix("torch.")
    return Certificate(symmetry, difference, name, nbytes / samples, seconds, samples)


def first_piece(problem: Problem) -> Chunk:
    """The first samples of the data, enough to check derivatives and measure memory, few enough to cost little."""
    batch = problem.batches.first()
    batch = split(batch, min(PIECE, max(FEWEST, problem.objective.samples(batch) // 4)))[0]
    return Chunk(0, move(batch, device=problem.device, dtype=problem.cast), problem.objective.samples(batch))


def _symmetry(problem: Problem, piece: Chunk) -> tuple[float, int, float]:
    """Asymmetry, bytes that the graph saves, and seconds of one product."""
    point = problem.point()
    u, v = (_direction(problem, point.leaves, seed=seed) for seed in (1, 2))

    def products(model: nn.Module) -> tuple[float, int, float]:
        with counting_saved_bytes(point.leaves) as saved:
            graph = _graph(problem, model, piece, point)
        start = clock(problem)
        Hu = graph.vector(u)
        seconds = clock(problem) - start
        Hv = graph.vector(v)
        size = float(_norm(Hu) + _norm(Hv))
        gap = abs(float(_dot(u, Hv) - _dot(v, Hu)))
        return (gap / size if size > 0 else 0.0), saved.total, seconds

    return problem.call(products, point)


def _difference(problem: Problem) -> tuple[float, torch.dtype]:
    """Smallest relative distance over the steps between Hv and the central difference of the gradient."""
    try:
        return _difference_in(problem.replace(dtype=torch.float64)), torch.float64
    except TheodoliteError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if problem.dtype == torch.float64 or is_missing_derivative(error):
            raise
        # A kernel without float64: check in the model's own precision, more coarsely.
        return _difference_in(problem), problem.dtype


def _difference_in(problem: Problem) -> float:
    piece, point = first_piece(problem), _jittered(problem)
    v = _without_padding(problem, _direction(problem, point.leaves, seed=3))
    kind = torch.float64 if problem.dtype == torch.float64 else torch.float32

    def product(model: nn.Module) -> tuple[Tensors, float]:
        gradient = _gradient(problem, model, piece, point, create_graph=True)
        return GradientGraph(gradient, point.leaves, 1.0).vector(v), float(_norm(gradient))

    exact, slope = problem.call(product, point)
    scale = 1.0 + float(_norm(point.leaves))
    floor = (1e-7 if kind == torch.float64 else 1e-3) * slope / scale
    estimates: dict[float, Tensors] = {}
    best = float("inf")
    for step in STEPS[kind]:
        estimates[step] = tuple(_central(problem, piece, point, v, step * scale))
        best = min(best, _distance(exact, estimates[step], floor))
        if best <= TOLERANCE[kind]:
            return best
    if _is_rounding(exact, estimates, floor, kind):
        return best if best <= ROUNDED else float("nan")
    # Differences that agree with one another are right; those that do not lie across a kink at every step.
    in_order = [estimates[step] for step in sorted(estimates)]
    if min(_distance(a, b, floor) for a, b in pairwise(in_order)) > TOLERANCE[kind]:
        return float("nan")
    raise DerivativeError(
        f"Expected the Hessian product to equal finite differences of the gradient, found them {best:.0%} apart at every "
        f"step tried{_suspects(problem, piece)}. A custom autograd function probably hides a tensor from double backward, "
        "or a layer computes part of its output without gradients, as spectral norm does in training. "
        "Use mode='eval', engine='difference', or the plain torch version of that layer."
    )


def _is_rounding(exact: Tensors, estimates: dict[float, Tensors], floor: float, kind: torch.dtype) -> bool:
    """Whether the rounding of the gradient explains the distance, at a step that it leaves a few per cent exact, or at all.

    A block of small curvature in a model that computes in float32 inside, as the norms of Llama do, has differences that are
    largely rounding. It is read from how far differences at neighbouring steps are apart, times the step; the median over the
    steps, since float32 does not see the smallest and the curve bends over the largest.
    """
    rounding = statistics.median(
        small * _gap(estimates[small], estimates[large]) for small, large in pairwise(sorted(estimates))
    )
    shares = {step: 4 * rounding / step / _size(exact, estimates[step], floor) for step in estimates}
    telling = [step for step, share in shares.items() if share <= ROUNDED]
    return not telling or any(
        _distance(exact, estimates[step], floor) <= TOLERANCE[kind] + shares[step] for step in telling
    )


def _jittered(problem: Problem) -> Point:
    """A point 1e-3 of ‖θ‖ away: freshly initialised networks have units exactly on the kink of their ReLU."""
    leaves = problem.point().leaves
    length = JITTER * (1.0 + float(_norm(leaves)))
    direction = _direction(problem, leaves, seed=4)
    moved = (leaf.detach() + length * part for leaf, part in zip(leaves, direction, strict=True))
    return problem.displaced(tuple(leaf.requires_grad_() for leaf in moved))


def _distance(a: Tensors, b: Tensors, floor: float) -> float:
    """Relative to the larger of the two, and to a floor below which both are rounding."""
    return _gap(a, b) / _size(a, b, floor)


def _size(a: Tensors, b: Tensors, floor: float) -> float:
    return max(float(_norm(a)), float(_norm(b)), floor, 1e-300)


def _gap(a: Tensors, b: Tensors) -> float:
    return float(_norm(tuple(x.detach() - y.detach() for x, y in zip(a, b, strict=True))))


def _central(problem: Problem, piece: Chunk, point: Point, v: Tensors, step: float) -> Iterator[Tensor]:
    """(∇L(θ + hv) − ∇L(θ − hv)) / 2h."""

    def at(sign: float) -> Tensors:
        moved = tuple(
            (leaf.detach() + sign * step * part).requires_grad_() for leaf, part in zip(point.leaves, v, strict=True)
        )
        there = problem.displaced(moved)
        return problem.call(lambda model: _gradient(problem, model, piece, there), there)

    for ahead, behind in zip(at(1.0), at(-1.0), strict=True):
        yield (ahead - behind) / (2 * step)


def _graph(problem: Problem, model: nn.Module, piece: Chunk, point: Point) -> GradientGraph:
    return GradientGraph(_gradient(problem, model, piece, point, create_graph=True), point.leaves, 1.0)


def _gradient(problem: Problem, model: nn.Module, piece: Chunk, point: Point, *, create_graph: bool = False) -> Tensors:
    """Gradient of the mean over the piece, so that scales do not depend on how many samples it has."""
    total, weight = problem.objective.evaluate(model, piece.batch)
    if not torch.isfinite(total):
        raise non_finite_loss(float(total.detach()), where="the first batch", parameters=problem.parameters)
    return gradients(total / max(weight, 1e-12), point.leaves, create_graph=create_graph)


def _direction(problem: Problem, leaves: Tensors, *, seed: int) -> Tensors:
    """A random unit vector, the same on every device."""
    generator = torch.Generator().manual_seed(problem.seed + seed)
    v = tuple(torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) for leaf in leaves)
    norm = _norm(v)
    return tuple(part / norm for part in v)


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


def _suspects(problem: Problem, piece: Chunk) -> str:
    """Names of Python autograd functions in the graph, the usual culprits."""
    point = problem.point()

    def names(model: nn.Module) -> list[str]:
        total, _ = problem.objective.evaluate(model, piece.batch)
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
            f"is wrong{_suspects(problem, piece)}. Replace that layer by its plain torch version."
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


def _norm(parts: Tensors) -> Tensor:
    return torch.sqrt(_dot(parts, parts))


def _dot(a: Tensors, b: Tensors) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=a[0].device)
    for x, y in zip(a, b, strict=True):
        total += (x.detach().double() * y.detach().double()).sum()
    return total


def clock(problem: Problem) -> float:
    """Wall-clock time after the device has finished."""
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)
    return time.perf_counter()
