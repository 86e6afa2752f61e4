"""Records to tables: each value with its error, whether it converged, its residual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theodolite.records import Density, Estimate, Gradients, Line, Plane, Spectrum, Stability, Trace
from theodolite.reports.figures import unjudged
from theodolite.reports.figures.spectra import OPERATORS
from theodolite.reports.figures.thinning import thin
from theodolite.reports.tables import Table
from theodolite.reports.wording import number

MOST_ROWS = 120


def stability_table(readings: Sequence[Stability]) -> Table:
    """One row a probe; with many probes, those that keep the extremes of the ratio.

    A column that says the same in every row is left out, and said below the table instead.
    """
    readings = sorted(readings, key=lambda r: -1 if r.step is None else r.step)
    kept = [readings[index] for index in thin(np.array([r.ratio for r in readings]), limit=MOST_ROWS)]
    columns = {
        "step": ["—" if r.step is None else f"{r.step:,}" for r in kept],
        "eigenpair": ["✓" if r.converged else state(r.converged) for r in kept],
        "loss": [number(r.loss, r.loss_stderr) for r in kept],
        "λ₁": [number(r.sharpness, r.sharpness_stderr) for r in kept],
        "preconditioned": [_judged(r, number(r.preconditioned_sharpness)) for r in kept],
        "bound": [_judged(r, number(r.threshold)) for r in kept],
        "ratio": [_judged(r, number(r.ratio, r.ratio_estimate.stderr)) for r in kept],
        "residual": [number(r.residual, digits=2) for r in kept],
        "lr": [number(r.learning_rate, digits=3) for r in kept],
    }
    said = ["± is one standard error from the data."]
    if not any(r.converged for r in readings) or all(r.converged for r in readings):
        del columns["eigenpair"]
        said.append(f"{'Every' if readings[0].converged else 'No'} eigenpair converged.")
    if not any(_preconditioned(r) for r in readings):
        del columns["preconditioned"]
    for name, words in (("bound", "the bound"), ("lr", "the learning rate")):
        if len(kept) > 1 and len(set(columns[name])) == 1 and columns[name][0] != "—":
            said.append(f"Throughout, {words} is {columns.pop(name)[0]}.")
    if any(map(unjudged, kept)):
        said.append("— where the optimiser has no bound yet.")
    if len(kept) < len(readings):
        said.append(f"{len(readings) - len(kept)} probes between these are in the log.")
    return Table(
        title="Sharpness against the stability bound",
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        words=2 if "eigenpair" in columns else 1,
        note=" ".join(said),
    )


def _preconditioned(reading: Stability) -> bool:
    return bool(np.isfinite(reading.preconditioned_sharpness)) and reading.preconditioned_sharpness != reading.sharpness


def _judged(reading: Stability, text: str) -> str:
    return "—" if unjudged(reading) else text


def spectrum_tables(record: Spectrum) -> tuple[Table, ...]:
    """The eigenvalues, and what follows from them."""
    shape = _shape_rows(record)
    name = OPERATORS.get(record.operator, record.operator)
    eigenvalues = _eigenvalue_table(record)
    if not shape:
        return (eigenvalues,)
    return eigenvalues, Table(
        title=f"Shape of the spectrum of the {name}",
        columns=("quantity", "estimate"),
        rows=shape,
        note="± is one standard error, of λ₁ from the data, of the others over probes.",
    )


def _eigenvalue_table(record: Spectrum) -> Table:
    """One row an eigenvalue."""
    rows = tuple(
        (_eigenvalue_name(record, index), state(bool(good)), number(value, error), number(residual, digits=2))
        for index, (value, error, residual, good) in enumerate(
            zip(record.eigenvalues, record.data_stderr, record.residuals, record.converged, strict=True)
        )
    )
    trace = f" Trace {number(record.trace, record.trace_stderr)}." if np.isfinite(record.trace) else ""
    return Table(
        title=f"Extreme eigenvalues of the {OPERATORS.get(record.operator, record.operator)}",
        columns=("", "eigenpair", "eigenvalue", "residual"),
        rows=rows,
        words=2,
        note=f"± is one standard error from the data; the residual is relative, asked for were "
        f"{number(record.tol, digits=2)}. {record.size:,} parameters.{trace}",
    )


def _shape_rows(record: Spectrum) -> tuple[tuple[str, str], ...]:
    """What the ends say together, and what needs the density; what was not measured has no row."""
    rows: list[tuple[str, str]] = []
    if record.which in ("largest", "both") and record.eigenvalues.size:
        rate = record.max_learning_rate
        if np.isfinite(record.split_half):
            free = record.sharpness
            rows.append(("λ₁ without the bias of a sample", number(free.value, free.stderr)))
        rows.append(("largest stable learning rate of gradient descent 2/λ₁", number(rate.value, rate.stderr)))
    if record.which == "both" and record.eigenvalues.size:
        rows.append(("how far from convex, −λₙ/λ₁", number(record.re, digits=3)))
    if record.nodes is None:
        return tuple(rows)
    rank = record.effective_rank
    rows += [
        ("type", record.type),
        ("effective rank (tr H)²/‖H‖²", number(rank.value, rank.stderr)),
    ]
    center, scale = record.bulk
    if not scale > 0:
        rows.append(("bulk", "narrower than the nodes resolve"))
    elif record.which != "smallest":
        rows += [
            ("λ₁ over the median |λ|", number(record.conditioning, digits=2)),
            ("outliers more than 10 scales above the bulk", _outlier_count(record)),
            ("bulk, centre and scale", f"{number(center, digits=2)}, {number(scale, digits=2)}"),
        ]
    return tuple(rows)


def _outlier_count(record: Spectrum) -> str:
    try:
        return str(record.outliers().size)
    except ValueError:  # every eigenvalue that is known is one
        return f"{record.top.size} or more"


def density_table(record: Density, spectrum: Spectrum | None = None) -> Table:
    """What the density integrates to.

    Args:
        record: the density.
        spectrum: the record that it came with, whose trace and norm are known better.
    """
    negative, balance = record.negative_mass, record.K()
    trace, frobenius = record.trace, record.frobenius
    if spectrum is not None:
        trace = spectrum.trace_estimate
        frobenius = Estimate(spectrum.frobenius, spectrum.frobenius_stderr)
    return Table(
        title=f"Spectral moments of the {OPERATORS.get(record.operator, record.operator)}",
        columns=("quantity", "estimate"),
        rows=(
            ("trace", number(trace.value, trace.stderr)),
            ("Frobenius norm", number(frobenius.value, frobenius.stderr)),
            ("share of eigenvalues below zero", number(negative.value, negative.stderr)),
            ("negative over positive trace K", number(balance.value, balance.stderr)),
        ),
        note=_density_note(record, spectrum),
    )


def _density_note(record: Density, spectrum: Spectrum | None) -> str:
    if spectrum is None:
        return f"± is one standard error over {record.probes} probes of {record.lanczos_steps} Lanczos steps."
    return (
        f"± is one standard error: of trace and norm over {spectrum.probes} probes off the Krylov space, of the shares that of "
        f"one random vector with {record.lanczos_steps} Lanczos steps beside {record.deflated} known eigenvalues."
    )


def trace_table(record: Trace) -> Table:
    """One row a layer, the whole first."""
    rows = [("whole", number(record.value, record.stderr))]
    rows += [
        (name, number(value, error))
        for name, value, error in zip(record.layers, record.layer_values, record.layer_stderrs, strict=True)
    ]
    return Table(
        title=f"Trace of the {OPERATORS.get(record.operator, record.operator)} by layer",
        columns=("layer", "trace"),
        rows=tuple(rows),
        note=f"± is one standard error over {record.probes} probes ({record.method}).",
    )


def gradients_table(record: Gradients) -> Table:
    """One row a layer, the whole first."""
    whole = float(np.sqrt(np.sum(record.parameter_norms**2)))
    rows = [("whole", number(record.norm, record.norm_stderr), number(whole), _ratio(record.norm, whole))]
    rows += [
        (name, number(norm, error), number(parameter), _ratio(norm, parameter))
        for name, norm, error, parameter in zip(
            record.layers, record.layer_norms, record.layer_norm_stderrs, record.parameter_norms, strict=True
        )
    ]
    return Table(
        title="Gradient norms by layer",
        columns=("layer", "‖∇L‖", "‖θ‖", "‖∇L‖ / ‖θ‖"),
        rows=tuple(rows),
        note=f"Loss {number(record.loss, record.loss_stderr)} over {record.samples:,} samples; ± is one standard error "
        "from the data.",
    )


def landscape_table(record: Line | Plane) -> Table:
    """Where the loss is lowest, and what could not be evaluated."""
    finite = np.isfinite(record.losses)
    *at, lowest = record.minimum
    place = ", ".join(f"{letter} = {number(value, digits=3)}" for letter, value in zip("αβ", at, strict=False))
    rows = [
        ("loss at the centre", number(record.center)),
        ("lowest loss", f"{number(lowest)} at {place}"),
        ("highest finite loss", number(float(record.losses[finite].max())) if finite.any() else "not a number"),
        ("points", " × ".join(str(length) for length in record.losses.shape)),
        ("points not finite", f"{int((~finite).sum())}"),
        ("‖θ‖", number(record.parameter_norm)),
    ]
    if isinstance(record, Plane):
        rows.append(("‖d₁‖, ‖d₂‖", ", ".join(number(norm) for norm in record.direction_norms)))
        rows.append(("cosine between d₁ and d₂", number(record.cosine, digits=3)))
    else:
        rows.append(("‖d‖", number(record.direction_norm)))
    return Table(title="The surface in numbers", columns=("quantity", "value"), rows=tuple(rows), folded=True)


def state(converged: bool) -> str:
    """Convergence in words."""
    return "converged" if converged else "not converged"


def _eigenvalue_name(record: Spectrum, index: int) -> str:
    """λ₁, λ₂, … from the top, λₙ, λₙ₋₁, … from the bottom: by position, as a convex problem has no negative end."""
    subscripts = str.maketrans("-0123456789", "₋₀₁₂₃₄₅₆₇₈₉")
    count = len(record.eigenvalues)
    tops = {"smallest": 0, "both": (count + 1) // 2}.get(record.which, count)
    if index < tops:
        return f"λ{str(index + 1).translate(subscripts)}"
    return f"λₙ{str(index + 1 - count).translate(subscripts) if index + 1 < count else ''}"


def _ratio(norm: float, parameter: float) -> str:
    return number(norm / parameter, digits=3) if parameter > 0 else "—"
