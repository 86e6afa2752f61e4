"""The learning rates that measured sharpness allows, as numbers and as advice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from theodolite.forecasts.order import at
from theodolite.records import Stability


def rates_allowed(until: Sequence[Stability], since: Sequence[Stability]) -> dict[str, float | int | str]:
    """Largest stable learning rate at the first reading, at the crossing and at the last reading.

    All bounds scale with 1/lr, so that it is lr / ratio; for the Adam family at the preconditioner of that reading.

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
    crossing, lowest = until[-1], min((*until, *since), key=lambda reading: reading.max_learning_rate)
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
    source = "lr / ratio" + (" at the preconditioner of that step" if preconditioned(reading) else "")
    return f"{reading.max_learning_rate:.3g} ({source}, {at(reading.step)})"


def _warm_up(until: Sequence[Stability]) -> str:
    """Warm-up helps where the start is the sharpest part; later the sharpness grows towards whatever bound there is."""
    if until[0].crossed:
        return (
            f"The first reading was across already: warm up from below {until[0].max_learning_rate:.3g}; sharpness falls "
            "while the rate rises slowly (Gilmer et al. 2021)."
        )
    return (
        "Or decay the rate before that step: the first reading allowed "
        f"{until[0].max_learning_rate:.3g}, and the sharpness grew since. A longer warm-up also leads to flatter regions "
        "(Gilmer et al. 2021)."
    )


def _clipping(crossing: Stability) -> str:
    """Clipping at c makes the rate lr·min(1, c/‖g‖), which an optimiser that normalises its steps undoes."""
    if preconditioned(crossing):
        return "Clipping gradients hardly helps here, as the preconditioner normalises them again."
    if not math.isfinite(crossing.ratio) or not crossing.gradient_norm > 0:
        return "Clipping the gradient norm lowers the effective rate in the same way."
    norm = crossing.gradient_norm / crossing.ratio
    return f"Clipping the gradient norm at {norm:.3g} would have kept the step at the bound there (Gilmer et al. 2021)."
