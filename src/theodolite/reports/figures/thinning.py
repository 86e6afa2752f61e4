"""Fewer points for the same picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def thin(values: Float[np.ndarray, " n"], *, limit: int = 1500) -> Int[np.ndarray, " m"]:
    """Indices of at most ``limit`` points that keep the ends, the extremes and the gaps of a curve.

    The curve is cut into equal stretches; of each, the smallest and the largest finite value stay, and the first
    reading that is not finite.

    Args:
        values: the curve, NaN and infinity allowed.
        limit: most points to keep, at least 5.

    Returns:
        Ascending indices.

    Raises:
        ValueError: if ``limit`` is below 5.

    Example:
        >>> import numpy as np
        >>> curve = np.zeros(1000); curve[417] = 9.0
        >>> 417 in thin(curve, limit=20)
        True
    """
    if limit < 5:
        raise ValueError(f"Thinning keeps both ends and three points of a stretch: limit must be >= 5, found {limit}.")
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), (limit - 2) // 3):
        finite = np.isfinite(values[stretch])
        if finite.any():
            inside = stretch[finite]
            kept.update((int(inside[values[inside].argmin()]), int(inside[values[inside].argmax()])))
        if not finite.all():
            kept.add(int(stretch[~finite][0]))
    return np.array(sorted(kept))
