"""Records of landscapes as tables: what figures of slices, paths and trajectories show, in numbers."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from theodolite.records import Atlas, Connectivity, Estimate, Path, Trajectory
from theodolite.records.barriers import Above
from theodolite.reports.tables import Table
from theodolite.reports.wording import number

MOST_PAIRS = 60
DEFINITIONS: tuple[Above, ...] = ("chord", "larger", "mean")


def atlas_table(record: Atlas) -> Table:
    """Slope and curvature along every direction."""
    rows = tuple(
        (
            name,
            number(float(slope), float(slope_stderr)),
            number(float(curvature), float(curvature_stderr)),
            number(float(norm), digits=3),
        )
        for name, slope, slope_stderr, curvature, curvature_stderr, norm in zip(
            record.names, record.slopes, record.slope_stderrs, record.curvatures, record.curvature_stderrs, record.norms,
            strict=True,
        )
    )  # fmt: skip
    return Table(
        title="Directions",
        columns=("direction", "slope gᵀu", "curvature uᵀHu", "‖d‖ as given"),
        rows=rows,
        note="± is one standard error from the data, the direction held fixed.",
        folded=True,
    )


def path_table(record: Path) -> Table:
    """Barriers of every profile by each definition."""
    rows = tuple(
        (
            name,
            *(_words(record.barrier(name, above=above)) for above in DEFINITIONS),
            _words(record.connectivity(name)),
            number(float(distance)),
        )
        for name, distance in zip(record.profiles, record.distances, strict=True)
    )
    columns = ("profile", "above the chord", "above the larger end", "above the mean", "mode connectivity", "length")
    return Table(
        title="Barriers",
        columns=columns,
        rows=rows,
        note="Mode connectivity is ½(L(0) + L(1)) − L(t) where that is largest in magnitude: negative for a barrier. ± is one "
        "standard error from the data.",
    )


def _words(estimate: Estimate) -> str:
    return number(estimate.value, estimate.stderr, digits=3)


def connectivity_table(record: Connectivity) -> Table:
    """Every pair with its barrier, the highest first."""
    pairs = list(combinations(range(len(record.names)), 2))
    order = sorted(pairs, key=lambda pair: -np.nan_to_num(record.barriers[pair], nan=np.inf))
    rows = tuple(
        (
            record.names[i],
            record.names[j],
            number(float(record.barriers[i, j]), float(record.stderrs[i, j])),
            number(float(record.distances[i, j])),
        )
        for i, j in order[:MOST_PAIRS]
    )
    left = len(order) - len(rows)
    return Table(
        title="Pairs",
        columns=("from", "to", "barrier above the chord", "distance"),
        rows=rows,
        words=2,
        note=f"{left} pairs with lower barriers are left out." if left else "",
        folded=True,
    )


def trajectory_table(record: Trajectory) -> Table:
    """What the plane of a trajectory shows of it."""
    gap = record.hidden[np.isfinite(record.hidden)]
    rows = (
        ("checkpoints", f"{len(record.losses):,}"),
        ("explained by the plane", ", ".join(f"{number(100 * share, digits=3)} %" for share in record.explained)),
        ("loss at the centre", number(record.center)),
        ("farthest from the plane", number(float(record.distances.max())) if record.distances.size else "nothing"),
        ("largest loss that the plane hides", number(float(np.abs(gap).max())) if gap.size else "not a number"),
    )
    return Table(title="The trajectory in numbers", columns=("quantity", "value"), rows=rows, folded=True)
