"""The distribution of the norms of per-sample gradients, with the samples that stand out named."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theodolite.records import Gradients
from theodolite.reports.figures.description import Axis, Band, Figure, Labels, Line, Mark, Panel, Rule
from theodolite.reports.wording import number

MOST_NAMED = 8
BINS = 40


def sample_norms(gradients: Gradients) -> Figure:
    """Histogram of ‖g_i‖ on a logarithmic axis; outliers carry their places in the data.

    Args:
        gradients: a record with a Gram matrix.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: if the record has no Gram matrix, or no sample with a finite gradient that is not zero.
    """
    norms = gradients.sample_norms
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if not norms.size:
        raise ValueError("The figure of norms needs a sample with a finite gradient that is not zero; found none.")
    middle = float(np.median(norms))
    low, high = np.log10(norms.min()), np.log10(norms.max())
    room = 0.04 * (high - low) or 0.1
    edges = np.linspace(low - room, high + room, BINS + 1)
    counts = np.histogram(np.log10(norms), bins=edges)[0].astype(np.float64)
    steps = 10 ** np.repeat(edges, 2)[1:-1]
    heights = np.repeat(counts, 2)
    top = float(counts.max()) * 1.35
    marks: tuple[Mark, ...] = (
        Band(x=steps, low=np.zeros_like(heights), high=heights, color="gradient", alpha=0.45),
        Line(x=steps, y=heights, color="gradient"),
        Rule(at=middle, direction="vertical", color="muted", label=f"median {number(middle, digits=3)}", end="head"),
        *_outliers(gradients, top),
    )
    return Figure(
        name="sample-norms",
        title="Norms of the gradients of samples",
        caption=_caption(gradients, len(norms)),
        limits=(
            "An outlier lies five robust standard deviations above the median of the logarithms: one normal sample in two "
            "million does. Large norms are wrong labels, rare inputs or hard samples; which, only a look at them tells."
        ),
        panels=(
            Panel(
                marks=marks,
                x=Axis(label="‖gᵢ‖", limits=(float(10 ** edges[0]), float(10 ** edges[-1])), scale="log"),
                y=Axis(label="samples", limits=(0.0, top)),
            ),
        ),
        height=320,
    )


def _outliers(gradients: Gradients, top: float) -> tuple[Mark, ...]:
    """Stems of the largest outliers, of heights that keep their names apart."""
    found = gradients.attribution
    named = np.flatnonzero(found.outlying)[:MOST_NAMED]
    if not named.size:
        return ()
    heights: Float[np.ndarray, " o"] = top * (0.28 + 0.13 * (np.arange(len(named)) % 5))
    norms = found.norms[named]
    gaps = np.full(len(named), np.nan)
    x = np.stack([norms, norms, gaps], axis=1).ravel()
    y = np.stack([np.zeros_like(heights), heights, gaps], axis=1).ravel()
    texts = tuple(f"#{index}" for index in found.indices[named].tolist())
    return (
        Line(x=x, y=y, color="crossing", width=1.0, label="outliers, by their places in the data"),
        Labels(x=norms, y=heights, texts=texts, color="crossing"),
    )


def _caption(gradients: Gradients, drawn: int) -> str:
    mean, share = gradients.mean_sample_norm, gradients.outlier_share
    outliers = gradients.attribution.outliers.tolist()
    text = [f"{drawn} samples; mean norm {number(mean.value, mean.stderr)}."]
    if outliers:
        shown = ", ".join(map(str, outliers[:12])) + (", …" if len(outliers) > 12 else "")
        text.append(f"{len(outliers)} outliers, the largest first: {shown}.")
    else:
        text.append("No outlier.")
    text.append(f"The largest holds {100 * share.value:.2g} % of the summed squares.")
    lost = len(gradients.finite) - drawn
    if lost:
        text.append(f"{lost} samples whose gradient is zero or not finite are not drawn.")
    return " ".join(text)
