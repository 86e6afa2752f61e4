"""Which samples a gradient, or a spike of it, comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records.gram import Gram, slopes_of_others

# Of a normal sample one in 2 million lies above; 1.4826 makes the median absolute deviation a standard deviation.
REACH = 5.0
SCALE = 1.4826


@final
@dataclass(frozen=True, eq=False)
class Attribution:
    """What each sample has to do with the gradient, the largest norm first.

    Args:
        indices: places of the samples in the data of the problem.
        norms: ‖g_i‖.
        shares: ‖g_i‖²/tr G.
        contributions: ⟨g_i, ḡ⟩/(B‖ḡ‖²), the parts of the squared norm of the mean gradient that samples bring; they add
            up to 1, negative where a sample opposes the rest.
        cosines: cos(g_i, ḡ_{−i}) with the mean gradient of the others.
        outlying: whether the logarithm of the norm lies 5 robust standard deviations above its median.
        groups: name of the group of each sample; empty without groups.
        group_contributions: summed contributions of each group.
    """

    indices: Int[np.ndarray, " b"]
    norms: Float[np.ndarray, " b"]
    shares: Float[np.ndarray, " b"]
    contributions: Float[np.ndarray, " b"]
    cosines: Float[np.ndarray, " b"]
    outlying: Bool[np.ndarray, " b"]
    groups: tuple[str, ...]
    group_contributions: dict[str, float]

    @property
    def outliers(self) -> Int[np.ndarray, " o"]:
        """Places in the data of the samples with outlying norms, the largest first."""
        return np.asarray(self.indices[self.outlying])


def attribution(gram: Gram, indices: Int[np.ndarray, " b"], groups: tuple[str, ...]) -> Attribution:
    """Shares of every sample in the gradient, from the Gram matrix.

    Args:
        gram: of b samples.
        indices: their places in the data.
        groups: the name of each sample's group, or nothing.
    """
    squares = np.diagonal(gram)
    order = np.argsort(-squares, kind="stable")
    count, total = len(gram), gram.sum()
    with np.errstate(all="ignore"):
        norms = np.sqrt(squares)
        contributions = gram.sum(axis=1) / total
        rest = np.sqrt(np.maximum(total - 2 * gram.sum(axis=1) + squares, 0.0)) / (count - 1)
        cosine = slopes_of_others(gram) / (norms * rest)
        logs = np.log(norms)
        middle = np.median(logs)
        spread = SCALE * np.median(np.abs(logs - middle))
        outlying = logs > middle + REACH * spread
    by_group = {
        name: float(contributions[[group == name for group in groups]].sum()) for name in dict.fromkeys(sorted(groups))
    }
    return Attribution(
        indices[order],
        norms[order],
        squares[order] / (np.trace(gram) or np.nan),
        contributions[order],
        cosine[order],
        outlying[order],
        tuple(groups[place] for place in order) if groups else (),
        by_group,
    )
