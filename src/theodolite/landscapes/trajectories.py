"""The plane that a trajectory of checkpoints spans, and where the checkpoints lie on a plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from theodolite.errors import ProblemError
from theodolite.records import Snapshot

BLOCK = 1 << 16  # parameters at a time: memory stays at one block of each checkpoint in double precision
LEAST = 3  # checkpoints that can span a plane
MARGIN = 0.15  # of the path's extent, on each side of the span that shows it


@dataclass(frozen=True)
class PrincipalDirections:
    """The two directions that explain most of a trajectory.

    Args:
        directions: of unit length, orthogonal.
        explained: share of Σ‖θ_t − θ‖² that each explains.
    """

    directions: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    explained: tuple[float, float]


@dataclass(frozen=True)
class Projection:
    """Checkpoints seen from a plane.

    Args:
        coordinates: of their least-squares projections, in units of the directions.
        distances: from the plane.
        explained: share of Σ‖θ_t − θ‖² along the first direction, and what the second adds; NaN where nothing moves.
    """

    coordinates: Float[np.ndarray, "t 2"]
    distances: Float[np.ndarray, " t"]
    explained: tuple[float, float]

    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """For each axis, the range that holds the path and the centre, with a margin."""
        low = np.minimum(self.coordinates.min(0), 0)
        high = np.maximum(self.coordinates.max(0), 0)
        room = MARGIN * (high - low)
        (a0, b0), (a1, b1) = (low - room).tolist(), (high + room).tolist()
        return (a0, a1), (b0, b1)


def trajectory(snapshots: Sequence[Snapshot], *, center: Float[np.ndarray, " n"]) -> PrincipalDirections:
    """The principal directions of θ_t − θ.

    Differences are taken from ``center`` and not from their mean, so that the plane is the one through ``center`` from
    which the checkpoints deviate least. They come from the t × t matrix of inner products, in double precision.

    Cost: t² n multiplications, no pass over the data.

    Args:
        snapshots: at least three checkpoints θ_t.
        center: θ, by custom the last of the trajectory.

    Returns:
        Two unit directions with the shares that they explain; of each, the checkpoint farthest along it has a positive
        coordinate.

    Raises:
        ProblemError: fewer than three checkpoints, of another size, not finite, or all on one line through ``center``.

    Example:
        >>> corners = np.array([[3.0, 0, 0], [3, 1, 0], [0, 1, 0]])
        >>> found = trajectory([Snapshot(parameters=corner) for corner in corners], center=np.zeros(3))
        >>> round(sum(found.explained), 12)
        1.0

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018), section 7.
    """
    check(snapshots, size=center.size)
    if len(snapshots) < LEAST:
        raise ProblemError(
            f"Expected at least {LEAST} snapshots with finite parameters to span the plane of a trajectory, found "
            f"{len(snapshots)}. Record more during training, or use directions='filter'."
        )
    if not all(np.isfinite(snapshot.parameters).all() for snapshot in snapshots):
        raise ProblemError("Expected snapshots with finite parameters, found NaN or infinity. Leave those out.")
    gram = _gram(snapshots, center)
    values, vectors = np.linalg.eigh(gram)
    (second, first), pair = values[-2:], vectors[:, :-3:-1]
    if second <= 64 * len(snapshots) * np.finfo(np.float64).eps * first:
        raise ProblemError(
            f"Expected snapshots that span a plane with the centre, found all {len(snapshots)} on one line through it "
            f"(second singular value {max(second, 0) ** 0.5:.3g} of {max(first, 0) ** 0.5:.3g}). Use line(), or other directions."
        )
    pair = pair * np.sign(pair[np.abs(pair).argmax(0), [0, 1]])
    return PrincipalDirections(
        _combined(snapshots, center, pair), (float(first / gram.trace()), float(second / gram.trace()))
    )


def shares(snapshots: Sequence[Snapshot], *, center: Float[np.ndarray, " n"]) -> Float[np.ndarray, " t"]:
    """Shares of Σ‖θ_t − θ‖² along each principal direction, in descending order; NaN where nothing moves.

    Cost: t² n multiplications.

    Args:
        snapshots: checkpoints θ_t.
        center: θ.
    """
    check(snapshots, size=center.size)
    gram = _gram(snapshots, center)
    total = float(gram.trace())
    if not total > 0:
        return np.full(len(snapshots), np.nan)
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0) / total)


def project(
    snapshots: Sequence[Snapshot],
    *,
    center: Float[np.ndarray, " n"],
    directions: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
) -> Projection:
    """Least-squares coordinates of θ_t − θ in two directions, which need be neither unit nor orthogonal.

    Args:
        snapshots: at least one checkpoint θ_t.
        center: θ.
        directions: not parallel.
    """
    check(snapshots, size=center.size)
    lengths = np.array([np.linalg.norm(direction.astype(np.float64)) for direction in directions])
    gram, products, squares = np.zeros((2, 2)), np.zeros((len(snapshots), 2)), np.zeros(len(snapshots))
    for part, block in _differences(snapshots, center):
        units = np.stack([direction[part] for direction in directions]) / lengths[:, None]
        gram += units @ units.T
        products += block @ units.T
        squares += np.square(block).sum(1)
    along = np.linalg.solve(gram, products.T).T
    residuals = np.zeros(len(snapshots))
    for part, block in _differences(snapshots, center):
        units = np.stack([direction[part] for direction in directions]) / lengths[:, None]
        residuals += np.square(block - along @ units).sum(1)
    return Projection(along / lengths, np.sqrt(residuals), _shares(products[:, 0], residuals, squares))


def check(snapshots: Sequence[Snapshot], *, size: int) -> None:
    """Refuse snapshots of other parameters.

    Raises:
        ProblemError: a snapshot has another size.
    """
    for index, snapshot in enumerate(snapshots):
        if snapshot.parameters.size != size:
            step = "" if snapshot.step is None else f" (step {snapshot.step})"
            raise ProblemError(
                f"Expected snapshots of the {size} selected parameters, found {snapshot.parameters.size} in snapshot "
                f"{index}{step}. Take snapshots and plane of the same model with the same params."
            )


def _gram(snapshots: Sequence[Snapshot], center: Float[np.ndarray, " n"]) -> Float[np.ndarray, "t t"]:
    gram: np.ndarray = sum(
        (block @ block.T for _, block in _differences(snapshots, center)), np.zeros((len(snapshots),) * 2)
    )
    return gram


def _differences(
    snapshots: Sequence[Snapshot], center: Float[np.ndarray, " n"]
) -> Iterator[tuple[slice, Float[np.ndarray, "t b"]]]:
    """θ_t − θ in double precision, one block of parameters after the other."""
    for start in range(0, center.size, BLOCK):
        part = slice(start, start + BLOCK)
        rows = np.stack([snapshot.parameters[part] for snapshot in snapshots])
        yield part, rows.astype(np.float64) - center[part].astype(np.float64)


def _combined(
    snapshots: Sequence[Snapshot], center: Float[np.ndarray, " n"], weights: Float[np.ndarray, "t 2"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Unit vectors along Σ_t weights (θ_t − θ), the second made orthogonal once more: the Gram matrix squares errors."""
    first, second = np.concatenate([weights.T @ block for _, block in _differences(snapshots, center)], axis=1)
    first = first / np.linalg.norm(first)
    second = second / np.linalg.norm(second)
    second = second - (first @ second) * first
    return first, second / np.linalg.norm(second)


def _shares(
    products: Float[np.ndarray, " t"], residuals: Float[np.ndarray, " t"], squares: Float[np.ndarray, " t"]
) -> tuple[float, float]:
    total = float(squares.sum())
    if not total > 0:
        return float("nan"), float("nan")
    first = float(np.square(products).sum()) / total
    return first, max(1 - float(residuals.sum()) / total - first, 0.0)
