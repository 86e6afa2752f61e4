"""Spectral density on a logarithmic axis, with the extreme eigenvalues where they were computed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theodolite.records import Density, Spectrum
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Rule, Ticks
from theodolite.reports.wording import number, slug

LIMITS = (
    "The curve is smoothed by a Gaussian of half a percent of the range: the width of a narrow peak, as of the bulk at "
    "zero, is that of the kernel. What lies below the height of one eigenvalue is an average over probes, not a count. "
    "The band is the error of the probes, not that of the data."
)
OPERATORS = {"hessian": "Hessian", "ggn": "GGN", "fisher": "Fisher"}


def density(record: Density, spectrum: Spectrum | None = None) -> Figure:
    """Share of the eigenvalues at each height of curvature, its error over probes, and the extreme eigenvalues.

    Args:
        record: nodes and weights of stochastic Lanczos quadrature.
        spectrum: eigenvalues of the same operator at the same point, drawn as ticks, hollow where not converged.

    Returns:
        A figure of one panel.

    References:
        Ghorbani, Krishnan & Xiao, "An investigation into neural net optimization via Hessian eigenvalue density"
        (2019).
    """
    grid = record.grid()
    mean, stderr = record.evaluate(grid)
    single = _single(record, grid)
    floor = max(0.2 * single, float(mean.max()) * 1e-9)
    marks: list[Mark] = []
    if np.isfinite(stderr).any():
        low, high = np.maximum(mean - stderr, floor), np.maximum(mean + stderr, floor)
        marks.append(Band(x=grid, low=low, high=high, color="curvature", alpha=0.25, label="± 1 s.e. over probes"))
    shown = np.where(mean > floor, mean, np.nan)
    marks += [
        Line(x=grid, y=shown, color="curvature", width=1.5, label="density"),
        Rule(at=0.0, direction="vertical", color="faint", width=0.8),
        Rule(at=single, direction="horizontal", color="muted", width=0.8, label="one eigenvalue"),
    ]
    if spectrum is not None and np.isfinite(spectrum.eigenvalues).any():
        marks.append(_eigenvalues(spectrum))
    top = 3 * max(float(np.max(mean + np.nan_to_num(stderr))), single)
    y = Axis(label="density (1 / λ)", limits=(floor, top), scale="log")
    return Figure(
        name=slug(f"density-{record.operator}"),
        title=f"Spectral density of the {OPERATORS.get(record.operator, record.operator)}",
        caption=_caption(record, spectrum),
        limits=LIMITS,
        panels=(Panel(marks=tuple(marks), x=_positions(grid, spectrum), y=y),),
        height=360,
    )


def _single(record: Density, grid: Float[np.ndarray, " g"]) -> float:
    """Height of the kernel of one eigenvalue among n; its width is a quarter of the room that the grid leaves."""
    width = (grid[-1] - np.nanmax(record.nodes)) / 4
    return float(1 / (record.size * width * np.sqrt(2 * np.pi)))


def _positions(grid: Float[np.ndarray, " g"], spectrum: Spectrum | None) -> Axis:
    values = grid if spectrum is None else np.concatenate([grid, spectrum.eigenvalues])
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    room = 0.02 * (high - low)
    return Axis(label="eigenvalue λ (loss per unit²)", limits=(low - room, high + room))


def _eigenvalues(spectrum: Spectrum) -> Ticks:
    finite = np.isfinite(spectrum.eigenvalues)
    return Ticks(
        x=spectrum.eigenvalues[finite],
        hollow=~spectrum.converged[finite],
        color="bound",
        label="eigenvalues (Lanczos)",
        hover=tuple(
            f"λ = {number(value, error)}<br>residual {number(residual, digits=2)}, "
            f"{'converged' if good else 'NOT CONVERGED'}"
            for value, error, residual, good in zip(
                spectrum.eigenvalues[finite],
                spectrum.data_stderr[finite],
                spectrum.residuals[finite],
                spectrum.converged[finite],
                strict=True,
            )
        ),
    )


def _caption(record: Density, spectrum: Spectrum | None) -> str:
    negative = record.negative_mass
    known = spectrum is not None and np.isfinite(spectrum.trace)
    trace = spectrum.trace_estimate if spectrum is not None and known else record.trace
    text = (
        f"{record.probes} probe{'s' if record.probes != 1 else ''} of {record.lanczos_steps} Lanczos steps"
        f"{f' beside {record.deflated} known eigenvalues' if record.deflated else ''} on n = {record.size:,} parameters: trace "
        f"{number(trace.value, trace.stderr)}, {number(100 * negative.value, 100 * negative.stderr)} % of the "
        "eigenvalues below zero."
    )
    if spectrum is None:
        return text
    open_ = int((~spectrum.converged).sum())
    state = f"{open_} of {spectrum.converged.size} are not converged" if open_ else "all converged"
    return f"{text} Ticks: the extreme eigenvalues from Lanczos, {state}."
