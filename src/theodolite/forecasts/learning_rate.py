"""The learning rates that measured sharpness allows, as numbers and as advice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from theodolite.forecasts.order import at
from theodolite.records import Stability


def rates_allowed(until: Sequence[Stability], since: Sequence[Stability]) -> dict[str, float | int | str]:
    """Largest stable learning rate at the first reading, at the crossing and at the last reading.

    All bounds scale with 1/lr, so that it is lr / ratio, and bound / sharpness at learning rate 0; for the Adam family at
    the preconditioner of that reading.

    Args:
        until: readings up to the crossing, it included.
        since: readings from the crossing on.
    """
    return {
        "learning_rate": until[-1].learning_rate,
        "learning_rate_allowed_first": until[0].max_learning_rate,
        "learning_rate_allowed_crossing": until[-1].max_learning_rate,
        "learning_rate_allowed_last": since[-1].max_learning_rate,
    }


def rate_advice(until: Sequence[Stability], since: Sequence[Stability], *, harmless: bool) -> str:
    """What to do about a crossing: a learning rate with its number, warm-up, clipping.

    Args:
        until: readings up to the crossing, it included.
        since: readings from the crossing on, none where the loss had left its range: their sharpness is of elsewhere.
        harmless: whether the loss kept to its range and the ratio near 1.
    """
    crossing = until[-1]
    known = [reading for reading in (*until, *since) if not math.isnan(reading.max_learning_rate)]
    lowest = min(known, key=lambda reading: reading.max_learning_rate)
    if harmless:
        return (
            "Nothing needs to change while the loss falls: full-batch gradient descent sharpens until it meets the bound "
            "and then hovers there, which is normal (Cohen et al. 2021). For a smooth descent, stay below a learning rate "
            f"of {_rate(lowest)}."
        )
    parts = [
        f"Lower the learning rate from {crossing.learning_rate:.3g} to less than {_rate(lowest)}.",
        _warm_up(until),
    ]
    return " ".join((*parts, _clipping(crossing)))


def preconditioned(reading: Stability) -> bool:
    """Whether the steps go through a preconditioner; with SGD the two sharpnesses differ by weight decay alone."""
    return reading.optimizer != "SGD" and reading.preconditioned_sharpness != reading.sharpness


def _rate(reading: Stability) -> str:
    """A learning rate with the reading that it follows from."""
    source = rate_source(reading) + (" at the preconditioner of that step" if preconditioned(reading) else "")
    return f"{reading.max_learning_rate:.3g} ({source}, {at(reading.step)})"


def rate_source(reading: Stability) -> str:
    """How the allowed rate of a reading follows from it."""
    return "lr / ratio" if reading.ratio > 0 else "bound / sharpness"


def _warm_up(until: Sequence[Stability]) -> str:
    """Warm-up helps where the start is the sharpest part; what led to a later crossing is read off the two readings."""
    first, crossing = until[0], until[-1]
    if first.crossed:
        return (
            f"The first reading was across already: warm up from below {first.max_learning_rate:.3g}; sharpness falls "
            "while the rate rises slowly (Gilmer et al. 2021)."
        )
    flatter = "A longer warm-up also leads to flatter regions (Gilmer et al. 2021)."
    if math.isnan(first.max_learning_rate):
        return flatter
    allowed = f"{first.max_learning_rate:.3g}"
    if crossing.learning_rate > first.learning_rate:
        rose = f"the rate rose from {first.learning_rate:.3g} to {crossing.learning_rate:.3g} since the first reading"
        grew = ", and the sharpness grew" if _sharper(first, crossing) else ""
        return f"Or let the rate rise less: {rose}, which allowed {allowed}{grew}. {flatter}"
    if crossing.max_learning_rate >= first.max_learning_rate:
        return flatter
    cause = "and the sharpness grew since" if _sharper(first, crossing) else "the bound fell since"
    return f"Or decay the rate before that step: the first reading allowed {allowed}, {cause}. {flatter}"


def _sharper(first: Stability, crossing: Stability) -> bool:
    """Whether what is held against the bound grew; with several learning rates, where that is the ratio, the sharpness."""
    one_rate = first.learning_rate == 0 or first.threshold != 1
    if preconditioned(first) and one_rate:
        return crossing.preconditioned_sharpness > first.preconditioned_sharpness
    return crossing.sharpness > first.sharpness


def _clipping(crossing: Stability) -> str:
    """Clipping at c makes the rate lr·min(1, c/‖g‖), which an optimiser that normalises its steps undoes."""
    if preconditioned(crossing):
        return "Clipping gradients hardly helps here, as the preconditioner normalises them again."
    if not math.isfinite(crossing.ratio) or not crossing.gradient_norm > 0:
        return "Clipping the gradient norm lowers the effective rate in the same way."
    norm = crossing.gradient_norm / crossing.ratio
    return f"Clipping the gradient norm at {norm:.3g} would have kept the step at the bound there (Gilmer et al. 2021)."
