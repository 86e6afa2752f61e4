"""Tables of gradients: what the Gram matrix of samples says, which of them the gradient comes from, which tasks oppose."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from theodolite.records import Estimate, Gradients, TaskGradients
from theodolite.reports.tables import Table
from theodolite.reports.wording import number

MOST_SAMPLES = 12


def readings_table(record: Gradients) -> Table:
    """Magnitude, noise and alignment, each with its error."""
    low, high = record.noise_scale_interval()
    readings: tuple[tuple[str, Estimate], ...] = (
        ("mean ‖gᵢ‖", record.mean_sample_norm),
        ("tr Σ", record.covariance_trace),
        ("|𝒢|², without bias", record.signal_square),
        ("signal to noise of a sample", record.gsnr),
        ("norm test", record.norm_test),
        ("inner-product test", record.inner_test),
        ("orthogonality test", record.orthogonality_test),
        ("coherence", record.coherence),
        ("diversity", record.diversity),
        ("mean cosine of a pair", record.mean_cosine),
        ("share of opposed pairs", record.negative_fraction),
        ("confusion", record.confusion),
        ("zero-sum learning", record.zero_sum),
        ("norm interference", record.norm_interference),
        ("effective rank of the empirical Fisher", record.effective_rank),
        ("largest share of a sample", record.outlier_share),
    )
    rows = [
        (
            "noise scale tr Σ/|𝒢|²",
            f"{number(record.noise_scale.value)}, 95 % from {number(low, digits=3)} to {number(high, digits=3)}",
        ),
        *((name, number(found.value, found.stderr)) for name, found in readings),
    ]
    return Table(
        title="Gradients of samples in numbers",
        columns=("quantity", "estimate"),
        rows=tuple(rows),
        note=f"± is one standard error over the {len(record.finite_gram)} samples of the Gram matrix.",
        folded=True,
    )


def samples_table(record: Gradients) -> Table:
    """The samples with the largest gradients: norm, share of the squares, part of the mean gradient, cosine with the others."""
    found = record.attribution
    grouped = bool(found.groups)
    rows = []
    for place in range(min(MOST_SAMPLES, len(found.indices))):
        group = (found.groups[place],) if grouped else ()
        rows.append(
            (
                f"{found.indices[place]}{' (outlier)' if found.outlying[place] else ''}",
                *group,
                number(float(found.norms[place])),
                f"{100 * found.shares[place]:.2g} %" if np.isfinite(found.shares[place]) else "—",
                f"{100 * found.contributions[place]:.2g} %" if np.isfinite(found.contributions[place]) else "—",
                number(float(found.cosines[place]), digits=2),
            )
        )
    columns = ("sample", *(("group",) if grouped else ()), "‖gᵢ‖", "of Σ‖g‖²", "of ‖ḡ‖²", "cosine with the others")
    return Table(
        title="Samples with the largest gradients",
        columns=columns,
        rows=tuple(rows),
        words=2 if grouped else 1,
        note="A sample that opposes the rest has a negative part of ‖ḡ‖²: ⟨gᵢ, ḡ⟩/(B‖ḡ‖²).",
        folded=True,
    )


def tasks_table(record: TaskGradients) -> Table:
    """The agreement of every pair of tasks on the parameters that they share."""
    graph = record.alignment.conflict_graph()
    rows = tuple(
        (
            f"{record.tasks[a]} · {record.tasks[b]}",
            "conflict" if graph[a, b] else "—",
            number(float(record.cosines[a, b]), float(record.cosine_stderrs[a, b])),
            f"{number(float(record.norms[a]))} · {number(float(record.norms[b]))}",
        )
        for a, b in combinations(range(len(record.tasks)), 2)
    )
    return Table(
        title="Gradients of tasks",
        columns=("tasks", "beyond chance", "cosine", "norms"),
        rows=rows,
        words=2,
        note="± is one standard error from the data. A conflict is a dot product below zero, at 95 % shared among the pairs.",
    )
