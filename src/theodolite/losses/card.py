"""The card of a classification loss: what kind of surface it makes, found by numerical test and not by claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from theodolite.losses.probes import (
    class_cost,
    convexity,
    flip_influence,
    gradient_bound,
    growth,
    invariances,
    margin_profile,
    posterior_error,
    symmetry,
)
from theodolite.losses.profiles import loss_named, name_of
from theodolite.losses.registry import LossModule

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, repr=False)
class Card:
    """What was measured of one loss, as plain numbers.

    Args:
        name: of the loss.
        classes: C it was measured at.
        points: random logits that each extreme value is over.
        seed: of the points.
        least_eigenvalue: of the Hessian in the logits, over random points.
        midpoint_excess: largest ℓ((a + b)/2) − (ℓ(a) + ℓ(b))/2; positive where the loss is not convex.
        gradient_bound: largest gradient norm over points of scale up to 1000, infinite if it still grows there.
        curvature_bound: largest eigenvalue in absolute value over the random points.
        shift_invariant: unchanged by a constant added to all logits.
        scale_invariant: unchanged by a positive factor.
        permutation_invariant: unchanged by renaming the classes.
        at_minus_infinity: growth with a margin to −∞: bounded, linear, quadratic or exponential.
        at_plus_infinity: the same for a margin to +∞.
        flip_influence: gradient norm at margin −10 over that at margin 0: 0 forgets a flipped label, 2 and more chases it.
        symmetry_spread: spread of Σ_k ℓ(z, k) over random z, over its mean: 0 for losses robust to uniform label noise.
        posterior_error: largest |softmax(z*) − q| over minimisers z* of the expected loss under random posteriors q:
            0 for losses whose softmax can be read as probability.
        class_cost: numbers that value and gradient write per sample and class, at 1024 classes; NaN for a loss made for a
            fixed number of classes.
        class_power: power of the class count that they grow with: 1 for linear.
        top_class_kept: whether the minimiser has its largest logit at the most probable class, for all these q.
        margins: z_y − z_k at which the profile was taken, the mean of all logits 0.
        values: loss along the margin.
        gradients: derivative along the margin.
        curvatures: second derivative along the margin.
    """

    name: str
    classes: int
    points: int
    seed: int
    least_eigenvalue: float
    midpoint_excess: float
    gradient_bound: float
    curvature_bound: float
    shift_invariant: bool
    scale_invariant: bool
    permutation_invariant: bool
    at_minus_infinity: str
    at_plus_infinity: str
    flip_influence: float
    symmetry_spread: float
    posterior_error: float
    class_cost: float
    class_power: float
    top_class_kept: bool
    margins: tuple[float, ...]
    values: tuple[float, ...]
    gradients: tuple[float, ...]
    curvatures: tuple[float, ...]

    @property
    def convex(self) -> bool:
        """Whether no test found the loss to bend down."""
        return self.least_eigenvalue > -1e-8 and self.midpoint_excess < 1e-8

    @property
    def proper(self) -> bool:
        """Whether the softmax of every minimiser was the posterior, to 1e-3."""
        return self.posterior_error < 1e-3

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the two verdicts, ready for JSON."""
        return asdict(self) | {"convex": self.convex, "proper": self.proper}

    def __repr__(self) -> str:
        """Show the verdicts, one a line; the profile is in the fields."""
        (name, *cells), width = _cells(self), max(map(len, HEAD))
        rows = [f"  {label:<{width}}  {cell}" for label, cell in zip(HEAD[1:], cells, strict=True)]
        return "\n".join([f"{name}, {self.classes} classes", *rows])


def card(
    loss: PerSampleLoss | LossModule | str,
    *,
    name: str | None = None,
    classes: int = 4,
    points: int = 200,
    seed: int = 0,
) -> Card:
    """Measure the surface that a loss of logits and class indices makes.

    Cost: about 40 passes over ``points`` rows of logits and a few hundred over single rows, a second or so.

    Args:
        loss: a function of logits (n, c) and classes (n,) with a ``reduction`` option, a module of this room, or the name
            of a loss whose options all have defaults.
        name: shown on the card, the loss's own by default.
        classes: C.
        points: random logits of each test.
        seed: of the random numbers.

    Returns:
        The card.

    Example:
        >>> from theodolite.losses import cross_entropy
        >>> found = card(cross_entropy)
        >>> found.convex, found.proper, found.at_minus_infinity
        (True, True, 'linear')
    """
    loss = loss_named(loss)
    single = _per_sample(loss)
    least, most, excess = convexity(single, classes=classes, points=points, seed=seed)
    shift, scale, permutation = invariances(single, classes=classes, points=points, seed=seed)
    fixed = bool(getattr(loss, "tensor_options", ()))  # class weights or counts: other class counts make no sense
    error, kept = posterior_error(single, classes=classes if fixed else 3, seed=seed)
    cost, power = (math.nan, math.nan) if fixed else class_cost(single)
    margins, values, gradients, curvatures = margin_profile(single, classes=classes)
    return Card(
        name=name or name_of(loss),
        classes=classes,
        points=points,
        seed=seed,
        least_eigenvalue=least,
        midpoint_excess=excess,
        gradient_bound=gradient_bound(single, classes=classes, points=points, seed=seed),
        curvature_bound=most,
        shift_invariant=shift,
        scale_invariant=scale,
        permutation_invariant=permutation,
        at_minus_infinity=growth(single, classes=classes, direction=-1.0),
        at_plus_infinity=growth(single, classes=classes, direction=1.0),
        flip_influence=flip_influence(single, classes=classes),
        symmetry_spread=symmetry(single, classes=classes, points=points, seed=seed),
        posterior_error=error,
        class_cost=cost,
        class_power=power,
        top_class_kept=kept,
        margins=margins,
        values=values,
        gradients=gradients,
        curvatures=curvatures,
    )


def _per_sample(loss: PerSampleLoss | LossModule) -> PerSampleLoss:
    given: Callable[..., Tensor] = loss
    return lambda logits, target: given(logits, target, reduction="none")


def card_table(cards: Sequence[Card]) -> str:
    """Return cards side by side as a Markdown table.

    Args:
        cards: in the order of the rows.

    Returns:
        Text, one line a card.

    Example:
        >>> from theodolite.losses import cross_entropy, mae
        >>> print(card_table([card(cross_entropy), card(mae)]).splitlines()[2][:30])
        | cross_entropy | yes | 1.41 |
    """
    rows = (HEAD, ("---",) * len(HEAD), *map(_cells, cards))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


HEAD = (
    "loss", "convex", "gradient ≤", "curvature ≤", "shift", "scale",
    "margin → −∞", "margin → +∞", "flip influence", "symmetric", "proper", "top class", "cost of a class",
)  # fmt: skip


def _cells(c: Card) -> tuple[str, ...]:
    return (
        c.name, _yes(c.convex), f"{c.gradient_bound:.3g}", f"{c.curvature_bound:.3g}", _yes(c.shift_invariant),
        _yes(c.scale_invariant), c.at_minus_infinity, c.at_plus_infinity, f"{c.flip_influence:.2f}",
        _yes(c.symmetry_spread < 1e-6), _yes(c.proper), _yes(c.top_class_kept), class_cost_text(c),
    )  # fmt: skip


def class_cost_text(found: Card) -> str:
    """Return the cost of a class in words: numbers written, and how they grow where that is not linear."""
    if math.isnan(found.class_cost):
        return "–"
    growth = "" if abs(found.class_power - 1) < 0.1 else f", C^{found.class_power:.1f}"
    return f"{found.class_cost:.0f}{growth}"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
