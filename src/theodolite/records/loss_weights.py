"""Weights of samples by their losses."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

Shape = Literal["lin-upper", "upper", "middle", "extremes"]


def loss_weights(
    losses: Float[np.ndarray, " n"], *, shape: Shape = "lin-upper", temperature: float = 1.0, width: float = 1.0
) -> Float[np.ndarray, " n"]:
    """Weights w = softmax(f(h)/r) of samples by where their losses lie in the range of the batch.

    h = 2δ(ℓ − (ℓ_min + ℓ_max)/2)/(ℓ_max − ℓ_min) lies between −δ and δ. Of all weights w these maximise Σ w f − r·KL(w‖uniform).
    Multiply losses by n·w before their mean, which keeps its scale; train uniformly for the first 500 to 1000 steps.

    Args:
        losses: of all samples of the batch, of all ranks.
        shape: f: ``"lin-upper"``, min(h + δ, δ), treats the upper half of the range alike and has less for redundant samples of
            small loss; ``"upper"``, (h + δ)/2; ``"middle"``, 1 − h²/δ²; ``"extremes"``, |h|.
        temperature: r; small ones sharpen, large ones give uniform weights.
        width: δ.

    Returns:
        Weights that add up to 1; uniform where all losses are equal.

    Raises:
        ValueError: a loss is not finite, temperature or width is not positive, or the shape is unknown.

    Example:
        >>> loss_weights(np.array([0.0, 1.0, 2.0])).round(3).tolist()
        [0.155, 0.422, 0.422]

    References:
        Sow et al., "Dynamic loss-based sample reweighting for improved large language model pretraining" (2025).
    """
    if not (temperature > 0 and width > 0):
        raise ValueError(f"Expected a positive temperature and width, found {temperature} and {width}.")
    if not np.isfinite(losses).all():
        raise ValueError(f"Expected finite losses, found {losses[~np.isfinite(losses)][0]:g} among {len(losses)}.")
    if not len(losses):
        return np.zeros(0)
    low, high = float(losses.min()), float(losses.max())
    # Losses that differ by less than this are alike, and their differences noise.
    place = 2 * width * (losses - (low + high) / 2) / max(high - low, 1e-6)
    return np.asarray(softmax(_shaped(place if high - low > 0 else np.zeros(len(losses)), shape, width) / temperature))


def _shaped(place: Float[np.ndarray, " n"], shape: str, width: float) -> Float[np.ndarray, " n"]:
    match shape:
        case "lin-upper":
            return np.asarray(np.minimum(place + width, width))
        case "upper":
            return np.asarray((place + width) / 2)
        case "middle":
            return np.asarray(1 - np.square(place / width))
        case "extremes":
            return np.asarray(np.abs(place))
        case _:
            raise ValueError(f"Expected shape to be 'lin-upper', 'upper', 'middle' or 'extremes', found {shape!r}.")
