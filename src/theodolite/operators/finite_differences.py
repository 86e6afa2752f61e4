"""Whether a product with a Hessian is the derivative of the gradient, by central differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from theodolite.errors import DerivativeError
from theodolite.operators.graphs import Tensors
from theodolite.problem import Problem

# Steps relative to 1 + ‖θ‖, in the order in which they are tried. A kink of ReLU or max-pooling is crossed inside a step
# with a probability proportional to it, and then spoils the difference at that step only; a model that computes its loss in
# float32 whatever its own type, as those of transformers do, is too coarse for small steps; a wrong derivative disagrees at
# every step.
STEPS = {torch.float64: (1e-6, 1e-7, 1e-8, 1e-5, 1e-4, 1e-3), torch.float32: (1e-3, 1e-2, 1e-4)}
JITTER = 1e-3
TOLERANCE = {torch.float64: 1e-3, torch.float32: 5e-2}
ROUNDED = 5e-2  # a wrong derivative is further off: custom functions that hide a tensor lose a half


def distance_from_differences(
    exact: Tensors,
    slope: float,
    gradient_at: Callable[[Tensors], Tensors],
    leaves: Tensors,
    v: Tensors,
    *,
    suspects: Callable[[], str],
    way_out: str = "mode='eval', engine='difference'",
) -> float:
    """Smallest relative distance, over the steps, between a product Hv and central differences of the gradient.

    Cost: two gradients a step, twelve at most.

    Args:
        exact: Hv.
        slope: length of the gradient.
        gradient_at: the gradient at other values of the leaves.
        leaves: where.
        v: a unit vector.
        suspects: names what may be wrong, for the error.
        way_out: options of the caller that avoid it.

    Returns:
        The distance; NaN where kinks or rounding spoil every step.

    Raises:
        DerivativeError: differences agree with one another and not with Hv.
    """
    kind = torch.float64 if leaves[0].dtype == torch.float64 else torch.float32
    scale = 1.0 + float(norm(leaves))
    floor = (1e-7 if kind == torch.float64 else 1e-3) * slope / scale
    estimates: dict[float, Tensors] = {}
    best = float("inf")
    for step in STEPS[kind]:
        estimates[step] = _central(gradient_at, leaves, v, step * scale)
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
        f"step tried{suspects()}. A custom autograd function probably hides a tensor from double backward, "
        "or a layer computes part of its output without gradients, as spectral norm does in training. "
        f"Use {way_out}, or the plain torch version of that layer."
    )


def jittered(problem: Problem, leaves: Tensors) -> Tensors:
    """Values 1e-3 of their norm away: freshly initialised networks have units exactly on the kink of their ReLU."""
    length = JITTER * (1.0 + float(norm(leaves)))
    parts = zip(leaves, direction(problem, leaves, seed=4), strict=True)
    return tuple((leaf.detach() + length * part).requires_grad_() for leaf, part in parts)


def direction(problem: Problem, leaves: Tensors, *, seed: int) -> Tensors:
    """A random unit vector, the same on every device."""
    generator = torch.Generator().manual_seed(problem.seed + seed)
    v = tuple(torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) for leaf in leaves)
    length = norm(v)
    return tuple(part / length for part in v)


def asymmetry(u: Tensors, v: Tensors, Hu: Tensors, Hv: Tensors) -> float:
    """|uᵀHv − vᵀHu| / (‖Hu‖ + ‖Hv‖)."""
    size, gap = float(norm(Hu) + norm(Hv)), abs(float(dot(u, Hv) - dot(v, Hu)))
    return gap / size if size > 0 else 0.0


def norm(parts: Tensors) -> Tensor:
    """Euclidean norm of all parts together."""
    return torch.sqrt(dot(parts, parts))


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Inner product of all parts together, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=a[0].device)
    for x, y in zip(a, b, strict=True):
        total += (x.detach().double() * y.detach().double()).sum()
    return total


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


def _distance(a: Tensors, b: Tensors, floor: float) -> float:
    """Relative to the larger of the two, and to a floor below which both are rounding."""
    return _gap(a, b) / _size(a, b, floor)


def _size(a: Tensors, b: Tensors, floor: float) -> float:
    return max(float(norm(a)), float(norm(b)), floor, 1e-300)


def _gap(a: Tensors, b: Tensors) -> float:
    return float(norm(tuple(x.detach() - y.detach() for x, y in zip(a, b, strict=True))))


def _central(gradient_at: Callable[[Tensors], Tensors], leaves: Tensors, v: Tensors, step: float) -> Tensors:
    """(∇L(θ + hv) − ∇L(θ − hv)) / 2h."""

    def at(sign: float) -> Tensors:
        parts = zip(leaves, v, strict=True)
        return gradient_at(tuple((leaf.detach() + sign * step * part).requires_grad_() for leaf, part in parts))

    return tuple((ahead - behind) / (2 * step) for ahead, behind in zip(at(1.0), at(-1.0), strict=True))
