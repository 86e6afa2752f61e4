"""A loss along one number: value, slope and curvature over a margin, a logit or an error, to be drawn side by side."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.probes import growth_of, with_margin
from theodolite.losses.registry import LOSSES, Kind, LossModule

Numbers = tuple[float, ...]
ALONG: dict[Kind, str] = {
    "classes": "margin z_y − z_k",
    "labels": "logit of a true label",
    "values": "error ŷ − y",
    "pairs": "log-ratio Δ of the preferred answer",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Profile:
    """What was measured of a loss along one number.

    Args:
        name: of the loss.
        along: what the number is.
        positions: where it was measured.
        values: of the loss, NaN where it is not defined.
        slopes: first derivative.
        curvatures: second derivative.
        at_minus_infinity: growth there: bounded, linear, quadratic or exponential.
        at_plus_infinity: the same at +∞.
    """

    name: str
    along: str
    positions: Numbers
    values: Numbers
    slopes: Numbers
    curvatures: Numbers
    at_minus_infinity: str
    at_plus_infinity: str

    @property
    def convex(self) -> bool:
        """Whether slopes never fall along the number, as far as it was measured."""
        known = [slope for slope in self.slopes if math.isfinite(slope)]
        size = max(map(abs, known), default=0.0)
        return all(later >= sooner - 1e-9 * (1 + size) for sooner, later in itertools.pairwise(known))

    @property
    def minimiser(self) -> float:
        """Where the loss is least; an infinity where it still falls at an end."""
        finite = [(value, x) for value, x in zip(self.values, self.positions, strict=True) if math.isfinite(value)]
        if not finite:
            return math.nan
        least, where = min(finite)
        first, last = finite[0], finite[-1]
        if where == last[1] and least < finite[-2][0]:
            return math.inf
        return -math.inf if where == first[1] and least < finite[1][0] else where

    @property
    def gradient_bound(self) -> float:
        """Largest slope in absolute value where it was measured."""
        return max((abs(slope) for slope in self.slopes if math.isfinite(slope)), default=math.nan)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and what is derived of them, ready for JSON."""
        derived = {"convex": self.convex, "minimiser": self.minimiser, "gradient_bound": self.gradient_bound}
        return asdict(self) | derived

    def __repr__(self) -> str:
        """Show what was found along the number; the curves are in the fields."""
        ends = f"{self.at_minus_infinity} at −∞, {self.at_plus_infinity} at +∞"
        bend = "convex" if self.convex else "not convex"
        where = f"least at {self.minimiser:.3g}, slope ≤ {self.gradient_bound:.3g}"
        return f"{self.name} along the {self.along}: {bend}, {where}, {ends} ({len(self.positions)} points)"


def compare(
    *losses: Callable[..., Tensor] | str, classes: int = 4, reach: float = 8.0, steps: int = 161
) -> tuple[Profile, ...]:
    """Measure losses along the number that their kind depends on, on one grid, to stand side by side.

    The number is the margin for losses of logits and classes (all logits with mean 0), the logit of one true label, the error of a
    prediction of 1, or the log-ratio of the preferred answer.

    Cost: three passes over ``steps`` rows for each loss.

    Args:
        *losses: functions or modules of this room, their names, or any function of (logits, classes) with a ``reduction``.
        classes: C of the losses of classes.
        reach: ends of the grid.
        steps: points of the grid, made odd.

    Returns:
        One profile a loss, in order.

    Raises:
        ValueError: a loss of another kind, or losses of different kinds.

    Example:
        >>> from theodolite.losses import cross_entropy, focal
        >>> [profile.name for profile in compare(cross_entropy, focal)]
        ['cross_entropy', 'focal']

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", figure 1, for the picture.
    """
    found = [loss_named(loss) for loss in losses]
    kinds = {kind_of(loss) for loss in found}
    if len(kinds) != 1 or not kinds <= set(ALONG):
        raise ValueError(
            f"Expected losses of one kind among {', '.join(ALONG)}. Found {', '.join(sorted(kinds)) or 'none'}: they have no "
            "number in common to be drawn along."
        )
    (kind,) = kinds
    half = steps // 2
    positions = reach * torch.arange(-half, half + 1, dtype=torch.float64) / half  # with an exact 0
    return tuple(_profile(loss, kind, classes, positions) for loss in found)


def loss_named(loss: Callable[..., Tensor] | str) -> Callable[..., Tensor]:
    """Return the loss of a name, or the loss that was given.

    Raises:
        ValueError: no loss has the name.
    """
    if not isinstance(loss, str):
        return loss
    known: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy} | {
        entry.name: entry.function for entry in LOSSES.values()
    }
    if loss not in known:
        near = ", ".join(difflib.get_close_matches(loss, known)) or "see theodolite.losses.LOSSES"
        raise ValueError(f"Expected the name of a loss. Found {loss!r}; near it: {near}.")
    return known[loss]


def kind_of(loss: Callable[..., Tensor]) -> Kind:
    """Return what the inputs of a loss are; a function that is not of this room takes logits and classes."""
    function = type(loss).function if isinstance(loss, LossModule) else loss
    entry = LOSSES.get(getattr(function, "__name__", ""))
    if entry is None or entry.function is not function:
        return "classes"
    return "other" if entry.coupled else entry.kind


def name_of(loss: Callable[..., Tensor]) -> str:
    """Return the name of a function, or how a module prints."""
    return str(getattr(loss, "__name__", None) or repr(loss))


def _profile(loss: Callable[..., Tensor], kind: Kind, classes: int, positions: Tensor) -> Profile:
    line = along(loss, kind, classes)
    x = positions.clone().requires_grad_()
    values = line(x)
    (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    bends = torch.autograd.grad(slopes.sum(), x)[0] if slopes.requires_grad else torch.zeros_like(x)
    known = values.detach().isfinite()
    ends = [growth_of(lambda t: line(t).detach(), direction=direction) for direction in (-1.0, 1.0)]
    return Profile(
        name=name_of(loss),
        along=ALONG[kind],
        positions=tuple(positions.tolist()),
        values=_numbers(values, known),
        slopes=_numbers(slopes, known),
        curvatures=_numbers(bends, known),
        at_minus_infinity=ends[0],
        at_plus_infinity=ends[1],
    )


def _numbers(values: Tensor, known: Tensor) -> Numbers:
    return tuple(torch.where(known, values.detach(), math.nan).tolist())


def along(
    loss: Callable[..., Tensor], kind: Kind, classes: int
) -> Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """Return a loss as a function of the number of its kind, one value for each."""

    def single(*inputs: Tensor) -> Tensor:
        values = loss(*inputs, reduction="none")
        return values.reshape(len(values), -1).sum(1)

    if kind == "classes":
        return lambda t: single(with_margin(t, classes), torch.zeros(len(t), dtype=torch.long))
    if kind == "labels":
        return lambda t: single(t[:, None], torch.ones_like(t)[:, None])
    if kind == "values":
        return lambda t: single(1 + t, torch.ones_like(t))
    return lambda t: single(t, *(torch.zeros_like(t) for _ in range(3)))


def profiled() -> dict[Kind, tuple[Callable[..., Tensor], ...]]:
    """Return the losses of this room that have a profile with their default options, by kind.

    Left out are those of cosines, which do not reach the ends of the grid.
    """
    found: dict[Kind, tuple[Callable[..., Tensor], ...]] = {}
    for kind in ALONG:
        entries = [e for e in LOSSES.values() if e.kind == kind and not e.coupled]
        found[kind] = tuple(e.function for e in entries if _has_defaults(e.function))
    return found


def _has_defaults(function: Callable[..., Tensor]) -> bool:
    """Whether every option has a default and the inputs are not cosines."""
    parameters = inspect.signature(function).parameters
    options = [p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return "cosines" not in parameters and all(option.default is not inspect.Parameter.empty for option in options)
