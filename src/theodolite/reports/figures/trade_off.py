"""What batch sizes cost in steps and in samples, as the noise of the gradient predicts it."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from theodolite.records import Gradients
from theodolite.records.noise import trade_off as curves
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Panel, Rule
from theodolite.reports.wording import number

REACH = 30.0  # batch sizes from so many times below the noise scale to so many above


def trade_off(gradients: Gradients) -> Figure:
    """Steps S/S_min = 1 + B_crit/B and samples E/E_min = 1 + B/B_crit by batch size, with the interval of the noise scale.

    Args:
        gradients: a record with a Gram matrix.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: if the record has no Gram matrix, or its noise scale is not positive and finite.

    References:
        McCandlish et al., "An empirical model of large-batch training" (2018).
    """
    scale = gradients.noise_scale
    if not 0 < scale.value < math.inf:
        raise ValueError(f"The trade-off needs a noise scale that is positive and finite; found {scale.value}.")
    low, high = gradients.noise_scale_interval()
    sizes = np.geomspace(max(scale.value / REACH, 1.0), max(scale.value * REACH, 10.0), 121)
    steps, samples = curves(scale.value, sizes)
    known = low > 0 and math.isfinite(high)
    marks = (
        *(_bands(sizes, low, high) if known else ()),
        Line(x=sizes, y=steps, color="loss", width=1.6, dash=not known, label="steps, over the fewest possible"),
        Line(x=sizes, y=samples, color="bound", width=1.6, dash=not known, label="samples, over the fewest possible"),
        Rule(
            at=scale.value,
            direction="vertical",
            color="muted",
            label=f"noise scale {number(scale.value, digits=3)}",
            end="head",
        ),
    )
    top = float(max(steps.max(), samples.max())) * 1.3
    return Figure(
        name="noise-scale",
        title="What a batch size costs",
        caption=_caption(gradients, low, high),
        limits=(
            "At this point of the training: the noise scale grows as the loss falls. It assumes a learning rate tuned for each "
            "batch size and a curvature alike in all directions; curved_noise weighs directions by their curvature."
        ),
        panels=(
            Panel(
                marks=marks,
                x=Axis(label="batch size", limits=(float(sizes[0]), float(sizes[-1])), scale="log"),
                y=Axis(label="to a given loss, over the least", limits=(1.0, top), scale="log"),
            ),
        ),
        height=340,
    )


def _bands(sizes: Float[np.ndarray, " s"], low: float, high: float) -> tuple[Band, Band]:
    """Between the curves of both ends of the interval: more noise takes more steps, and fewer samples are wasted."""
    (fewest, most_wasted), (most, least_wasted) = (curves(end, sizes) for end in (low, high))
    return (
        Band(x=sizes, low=fewest, high=most, color="loss"),
        Band(x=sizes, low=least_wasted, high=most_wasted, color="bound"),
    )


def _caption(gradients: Gradients, low: float, high: float) -> str:
    scale, samples = gradients.noise_scale.value, len(gradients.finite_gram)
    reach = (
        f"from {number(low, digits=3)} to {number(high, digits=3)}"
        if math.isfinite(high)
        else f"above {number(low, digits=3)}"
    )
    text = [
        f"Noise scale tr Σ/|𝒢|² = {number(scale, digits=3)} from {samples} samples; 95 % interval {reach}. At that size a "
        "batch takes twice the fewest steps and twice the fewest samples; far below it no sample is wasted, far above it more of "
        "them save no steps."
    ]
    text.append(
        "Bands: the ends of the interval."
        if low > 0 and math.isfinite(high)
        else "Dashed: these samples do not tell the gradient from zero, and the noise scale is little more than a guess."
    )
    return " ".join(text)
