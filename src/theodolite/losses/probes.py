"""The tests behind a card: each takes a per-sample loss of logits and classes and returns plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from theodolite.losses.numerics import safe_norm

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
Numbers = tuple[float, ...]


def convexity(loss: PerSampleLoss, *, classes: int, points: int, seed: int) -> tuple[float, float, float]:
    """Return the least and the absolutely largest Hessian eigenvalue, and the largest excess of a midpoint."""
    logits, target = random_points(classes, points, seed)
    eigenvalues = torch.linalg.eigvalsh(hessians(loss, logits, target))
    other, _ = random_points(classes, points, seed + 1)
    with torch.no_grad():
        ends = (loss(logits, target) + loss(other, target)) / 2
        excess = (loss((logits + other) / 2, target) - ends) / (1 + ends.abs())
    return float(eigenvalues.min()), float(eigenvalues.abs().max()), float(excess.max())


def random_points(classes: int, points: int, seed: int) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Return logits of scales from 0.1 to 10 and classes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, points, dtype=torch.float64)[:, None]
    logits = scales * torch.randn(points, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (points,), generator=generator)


def gradients(loss: PerSampleLoss, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Return the gradient of each sample's loss in its logits."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, target).sum(), leaf)[0]


def hessians(loss: PerSampleLoss, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c c"]:
    """Return the Hessian of each sample's loss in its logits, 0 where the gradient is constant."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target).sum(), leaf, create_graph=True)
    if not gradient.requires_grad:
        return torch.zeros(*logits.shape, logits.shape[1], dtype=logits.dtype)
    rows = [torch.autograd.grad(gradient[:, k].sum(), leaf, retain_graph=True)[0] for k in range(logits.shape[1])]
    found = torch.stack(rows, 1)
    return (found + found.mT) / 2


def gradient_bound(loss: PerSampleLoss, *, classes: int, points: int, seed: int) -> float:
    """Return the largest gradient norm found up to a scale of 1000, infinite if it doubles from 100 to 1000."""
    logits, target = random_points(classes, points, seed)
    directions = logits / safe_norm(logits)[:, None]
    bounds = [
        float(safe_norm(gradients(loss, scale * directions, target)).max()) for scale in (1.0, 10.0, 100.0, 1000.0)
    ]
    return math.inf if bounds[3] > 2 * bounds[2] and bounds[3] > 2 * bounds[1] else max(bounds)


def invariances(loss: PerSampleLoss, *, classes: int, points: int, seed: int) -> tuple[bool, bool, bool]:
    """Return whether a shift of all logits, a positive factor, and a renaming of the classes change nothing."""
    logits, target = random_points(classes, points, seed)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    renamed = order.argsort()[target]
    with torch.no_grad():
        value = loss(logits, target)

        def same(other: Tensor) -> bool:
            return bool(torch.allclose(other, value, rtol=1e-7, atol=1e-7))

        return same(loss(logits + 2.5, target)), same(loss(3 * logits, target)), same(loss(logits[:, order], renamed))


def posterior_error(loss: PerSampleLoss, *, classes: int, seed: int, draws: int = 3) -> tuple[float, bool]:
    """Return how far the softmax of a minimiser of the expected loss is from the posterior, and if their modes agree.

    A discrete toy: one input, posterior q; Σ_y q_y ℓ(z, y) is minimised over free logits from the best of two starts.
    """
    generator = torch.Generator().manual_seed(seed)
    worst, kept = 0.0, True
    for _ in range(draws):
        q = 0.05 + torch.rand(classes, generator=generator, dtype=torch.float64)
        q = q / q.sum()
        starts = [torch.zeros(classes, dtype=torch.float64), torch.randn(classes, generator=generator).double()]
        best = min((_minimised(loss, q, start) for start in starts), key=lambda found: found[0])[1]
        worst = max(worst, float((torch.softmax(best, 0) - q).abs().max()))
        kept = kept and int(best.argmax()) == int(q.argmax())
    return worst, kept


def _minimised(loss: PerSampleLoss, q: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """Minimise the expected loss by L-BFGS; a minimiser at infinity is followed until the gradient vanishes."""
    z = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z], max_iter=80, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )
    labels = torch.arange(len(q))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (q * loss(z.expand(len(q), -1), labels)).sum()
        value.backward()
        return value

    optimizer.step(closure)
    final = float(closure().detach())
    return (final if math.isfinite(final) else math.inf), z.detach()


def margin_profile(
    loss: PerSampleLoss, *, classes: int, reach: float = 8.0, steps: int = 81
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return margins, and the value, slope and curvature of the loss along them, all logits with mean 0."""
    margins = torch.linspace(-reach, reach, steps, dtype=torch.float64)
    logits = with_margin(margins, classes)
    along = with_margin(torch.ones(1, dtype=torch.float64), classes)[0]
    target = torch.zeros(steps, dtype=torch.long)
    with torch.no_grad():
        values = loss(logits, target)
    slopes = gradients(loss, logits, target) @ along
    bends = hessians(loss, logits, target) @ along @ along
    return tuple(margins.tolist()), tuple(values.tolist()), tuple(slopes.tolist()), tuple(bends.tolist())


def with_margin(margins: Float[Tensor, " n"], classes: int) -> Float[Tensor, "n c"]:
    """Return logits of mean 0 in which class 0 leads all others by the margin.

    Their mean matters to a loss that is not blind to a shift of all logits.
    """
    shares = torch.full((classes,), -1 / classes, dtype=margins.dtype)
    shares[0] += 1
    return margins[:, None] * shares


def growth(loss: PerSampleLoss, *, classes: int, direction: float) -> str:
    """Return how the loss grows with the margin: bounded, linear, quadratic or exponential."""

    def along(t: Tensor) -> Tensor:
        return loss(with_margin(t, classes), torch.zeros(len(t), dtype=torch.long))

    return growth_of(along, direction=direction)


def growth_of(line: Callable[[Tensor], Tensor], *, direction: float) -> str:
    """Return how a function of one number grows towards an infinity: bounded, linear, quadratic, exponential or undefined."""
    with torch.no_grad():
        points = direction * torch.tensor([8.0, 16.0, 24.0, 1000.0, 2000.0], dtype=torch.float64)
        first, second, third, far, farther = line(points).tolist()
    if not math.isfinite(first) or not math.isfinite(second):
        return "undefined"
    if abs(farther - far) < max(
        1e-3 * (1 + abs(far)), 0.1 * abs(second - first)
    ):  # a limit may be neared as slowly as 1/m
        return "bounded"
    ratio = (third - second) / (second - first) if second != first else math.inf  # 1, 5/3 or e^8 over equal steps
    return "linear" if ratio < 1.3 else "quadratic" if ratio < 3 else "exponential"


def flip_influence(loss: PerSampleLoss, *, classes: int) -> float:
    """Return the gradient norm at margin −10, a flipped label of a sure sample, over that at margin 0."""
    logits = with_margin(torch.tensor([10.0, 0.0], dtype=torch.float64), classes).roll(1, dims=1)  # sure of class 1
    sizes = safe_norm(gradients(loss, logits, torch.zeros(2, dtype=torch.long)))
    return float(sizes[0] / sizes[1]) if float(sizes[1]) > 0 else math.inf


def symmetry(loss: PerSampleLoss, *, classes: int, points: int, seed: int) -> float:
    """Return the spread over random logits of the loss summed over all labels, relative to its mean."""
    logits, _ = random_points(classes, points, seed)
    with torch.no_grad():
        totals = torch.stack([loss(logits, torch.full((points,), k)) for k in range(classes)]).sum(0)
    return float((totals.max() - totals.min()) / totals.mean().abs().clamp(min=1e-12))


def class_cost(loss: PerSampleLoss, *, many: int = 1024, few: int = 64, samples: int = 4) -> tuple[float, float]:
    """Return numbers written per sample and class by value and gradient, and the power of the class count they grow with.

    Counted, not timed: the elements of all results of torch operations that are not views, at two class counts.
    """
    counts = [_written(loss, classes, samples) for classes in (few, many)]
    return counts[1] / (samples * many), math.log(counts[1] / counts[0]) / math.log(many / few)


def _written(loss: PerSampleLoss, classes: int, samples: int) -> int:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, classes, generator=generator).requires_grad_()
    target = torch.randint(classes, (samples,), generator=generator)
    counter = _Counter()
    with counter:
        torch.autograd.grad(loss(logits, target).sum(), logits)
    return counter.elements


class _Counter(TorchDispatchMode):
    """Counts the elements that operations write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            outputs = result if isinstance(result, tuple | list) else (result,)
            self.elements += sum(output.numel() for output in outputs if isinstance(output, Tensor))
        return result
