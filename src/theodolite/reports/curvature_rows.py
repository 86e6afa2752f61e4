"""Tables of what was asked of the curvature beside its spectrum: by class, along directions, in a neighbourhood, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from theodolite.records import (
    Alignment,
    BatchSharpness,
    Classwise,
    Directional,
    Outliers,
    Record,
    Sharpness,
    Tracking,
    Tuning,
)
from theodolite.reports.figures.spectra import OPERATORS
from theodolite.reports.rows import state
from theodolite.reports.tables import Table
from theodolite.reports.wording import number

DATA = "± is one standard error from the data."


def classwise_table(record: Classwise) -> Table:
    """One row a class or domain."""
    rows = [
        (
            group,
            state(bool(good)),
            f"{samples:,}",
            number(loss),
            number(top, top_error),
            number(bottom, bottom_error),
            number(saddle, digits=3),
            number(trace, trace_error),
        )
        for group, good, samples, loss, top, top_error, bottom, bottom_error, saddle, trace, trace_error in zip(
            record.groups,
            record.converged,
            record.samples.tolist(),
            record.losses,
            record.largest,
            record.largest_stderrs,
            record.smallest,
            record.smallest_stderrs,
            record.saddles,
            record.traces,
            record.trace_stderrs,
            strict=True,
        )
    ]
    return Table(
        title=f"Curvature by class ({_operator(record)} of each class's own loss)",
        columns=("class", "eigenpairs", "samples", "loss", "λ_max", "λ_min", "−λ_min/λ_max", "trace"),
        rows=tuple(rows),
        words=2,
        note=f"{DATA} That of the traces is over {record.probes} probes. A class with a large −λ_min/λ_max sits on a saddle of its "
        "own loss (Rangwani et al. 2022).",
    )


def outliers_table(record: Outliers) -> Table:
    """How many eigenvalues stand out, and whether the classes span them."""
    above = "all that are known" if record.above_bulk is None else str(record.above_bulk)
    return Table(
        title=f"Outliers of the {_operator(record)} against {len(record.classes)} classes",
        columns=("quantity", "value"),
        rows=(
            ("eigenvalues above the widest gap", str(record.count)),
            ("ratio across that gap", number(record.ratio, digits=3)),
            (f"more than {record.kappa:g} scales above the bulk", above),
            ("of their eigenspace, class-mean gradients span", number(record.overlap, digits=3)),
            ("of a random subspace", number(record.chance, digits=2)),
        ),
        note="A net that has learned its classes shows about one outlier a class.",
    )


def directional_table(record: Directional) -> Table:
    """One row a direction."""
    columns = (
        record.names,
        record.norms,
        record.slopes,
        record.exact,
        record.exact_stderrs,
        record.best_scales,
        record.agreement,
        record.third_order_index,
    )
    rows = [
        (
            name,
            number(norm),
            number(slope),
            number(curvature / norm**2 if norm else np.nan, error / norm**2 if norm else np.nan),
            f"{number(scale, digits=3)}{' overshoots' if scale < 0.5 else ''}",
            number(agreement, digits=3),
            number(third, digits=2),
        )
        for name, norm, slope, curvature, error, scale, agreement, third in zip(*columns, strict=True)
    ]
    return Table(
        title="Curvature along directions",
        columns=(
            "direction",
            "‖d‖",
            "gᵀd",
            "dᵀHd/‖d‖²",
            "best multiple of d",
            "actual / predicted gain",
            "third-order index",
        ),
        rows=tuple(rows),
        note=f"{DATA} A best multiple below ½ says that the step raises the loss of the quadratic model; a third-order index "
        "beyond 0.3 that this model does not describe it.",
    )


def alignment_table(record: Alignment) -> Table:
    """Gradient and update in the span of the top eigenvectors."""
    rows = [("gradient", number(record.gradient.value, record.gradient.stderr), number(record.gradient_norm))]
    if record.optimizer:
        rows.append(
            (
                f"update of {record.optimizer}",
                number(record.update.value, record.update.stderr),
                number(record.update_norm),
            )
        )
    rows.append(("a random vector", number(record.chance, digits=2), "—"))
    return Table(
        title=f"Share in the span of the top {len(record.eigenvalues)} eigenvectors of the {_operator(record)}",
        columns=("vector", "share of its squared norm", "norm"),
        rows=tuple(rows),
        note=DATA,
    )


def sharpness_table(record: Sharpness) -> Table:
    """One row a radius."""
    drawn = record.draws > 1 and bool(np.isfinite(record.draw_stderrs).any())
    rows = [
        (
            number(radius, digits=3),
            number(rise, error),
            *((number(rise, draw_error),) if drawn else ()),
            number(first),
        )
        for radius, rise, error, draw_error, first in zip(
            record.radii, record.rises, record.stderrs, record.draw_stderrs, record.first_order, strict=True
        )
    ]
    return Table(
        title=f"Rise of the loss in a neighbourhood: {record.name}",
        columns=("radius", "rise ± data", *(("rise ± draws",) if drawn else ()), "by the gradient alone"),
        rows=tuple(rows),
        note=f"{record.neighbourhood[:1].upper()}{record.neighbourhood[1:]}; loss {number(record.loss, record.loss_stderr)}.",
    )


def batch_sharpness_table(record: BatchSharpness) -> Table:
    """One row a batch size, and the law through them."""
    level, slope = record.law
    rows = [
        (f"{size:,}", number(mean.value, mean.stderr), number(2 / mean.value if mean.value > 0 else np.nan))
        for size, mean in zip(record.sizes.tolist(), record.means, strict=True)
    ]
    rows.append(
        ("all", number(record.whole, record.whole_stderr), number(2 / record.whole if record.whole > 0 else np.nan))
    )
    return Table(
        title="Sharpness of batches, by their size",
        columns=("batch size", "λ_B", "2/λ_B"),
        rows=tuple(rows),
        note=f"± is one standard error over {record.sharpness.shape[1]} batches, in the last row from the data. Law λ + κ/𝔟: "
        f"λ = {number(level.value, level.stderr)}, κ = {number(slope.value, slope.stderr)}.",
    )


def tuning_table(record: Tuning) -> Table:
    """What heavy ball would converge fastest with."""
    return Table(
        title=f"Learning rate and momentum from the {_operator(record)}",
        columns=("quantity", "value"),
        rows=(
            ("largest curvature L", number(record.largest)),
            ("smallest curvature μ", number(record.smallest)),
            ("learning rate", number(record.learning_rate)),
            ("momentum", number(record.momentum, digits=3)),
        ),
        note=f"Ritz values of {record.lanczos_steps} Lanczos steps; the optimum of heavy ball on the quadratic between them.",
    )


def tracking_table(record: Tracking) -> Table:
    """One row an eigenvalue, with where it came from."""
    rows = [
        (
            f"{place + 1}",
            state(bool(good)),
            number(value, error),
            "new" if origin < 0 else f"{origin + 1}, {number(record.earlier[origin])}",
        )
        for place, (value, error, good, origin) in enumerate(
            zip(record.eigenvalues, record.data_stderr, record.converged, record.came_from.tolist(), strict=True)
        )
    ]
    return Table(
        title=f"Top eigenvalues of the {_operator(record)} and where they came from",
        columns=("place", "eigenpair", "eigenvalue", "earlier place and value"),
        rows=tuple(rows),
        words=2,
        note=f"{DATA} The eigenspaces overlap by {number(record.overlap, digits=3)}.",
    )


TABLES: Mapping[type[Record], Callable[[Any], Table]] = {
    Outliers: outliers_table,
    Classwise: classwise_table,
    Directional: directional_table,
    Alignment: alignment_table,
    Sharpness: sharpness_table,
    BatchSharpness: batch_sharpness_table,
    Tuning: tuning_table,
    Tracking: tracking_table,
}


def _operator(record: Any) -> str:
    return str(OPERATORS.get(record.operator, record.operator))
