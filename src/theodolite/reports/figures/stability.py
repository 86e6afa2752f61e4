"""Loss and sharpness along training, against the bound beyond which the optimiser's steps grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records import Record, Scalars, Stability
from theodolite.reports.figures.absent import missing_marks, unjudged, unjudged_marks, unjudged_words
from theodolite.reports.figures.description import Axis, Band, Figure, Line, Mark, Panel, Scatter
from theodolite.reports.figures.edge import (
    Departure,
    bound_marks,
    crossing,
    crossing_marks,
    departure,
    departure_words,
    step_of,
)
from theodolite.reports.figures.scales import fitted_axis
from theodolite.reports.figures.thinning import thin
from theodolite.reports.wording import number


def loss_and_sharpness(records: Sequence[Record]) -> Figure:
    """Loss above, preconditioned sharpness against the stability bound below, over one step axis.

    Args:
        records: of one run; `Scalars` with a ``loss`` and `Stability` records that carry a step are used.

    Returns:
        A figure of one panel (loss only) or two.

    Raises:
        ValueError: if no record carries a loss and a step.

    References:
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021);
        Cohen et al., "Adaptive gradient methods at the edge of stability" (2022).
    """
    scalars = sorted((r for r in records if isinstance(r, Scalars) and "loss" in r.values), key=step_of)
    scalars = [r for r in scalars if r.step is not None]
    readings = sorted((r for r in records if isinstance(r, Stability) and r.step is not None), key=step_of)
    if not scalars and not readings:
        raise ValueError(
            "The figure of loss and sharpness needs a Scalars record with a 'loss' or a Stability record, each with "
            f"a step; found {len(records)} records, none of them such. Train under a Monitor, or call monitor.log()."
        )
    left = departure(records)
    steps = _array([*map(step_of, (*scalars, *readings)), *([] if left is None else [left.step])])
    reach = max(float(steps.max() - steps.min()), 1.0)
    x = Axis(label="optimiser step", limits=(float(steps.min()) - 0.02 * reach, float(steps.max()) + 0.03 * reach))
    panels = [_loss_panel(scalars, readings, x, left)]
    if readings:
        panels.append(_sharpness_panel(readings, x, left))
    return Figure(
        name="loss-and-sharpness",
        title="Loss and sharpness" if readings else "Loss",
        caption=_caption(scalars, readings, left),
        limits=(
            "A crossing is located only to within two probes, and on the quadratic model of the loss at one point: "
            "it says that small steps along the sharpest direction grow, not how far. The training loss is that of "
            "single batches; the markers are the loss on the fixed data of the problem."
        ),
        panels=tuple(panels),
        height=540 if readings else 300,
    )


def _loss_panel(scalars: list[Scalars], readings: list[Stability], x: Axis, left: Departure | None) -> Panel:
    curve = _array([r.values["loss"] for r in scalars])
    kept = thin(curve) if len(curve) else np.arange(0)
    steps, curve = _array([step_of(r) for r in scalars])[kept], curve[kept]
    probes, losses = _array([step_of(r) for r in readings]), _array([r.loss for r in readings])
    y = fitted_axis("loss", curve, losses)
    marks = crossing_marks(crossing(readings), left, above=y)
    if len(curve):
        marks.append(Line(x=steps, y=_gaps(curve), color="loss", alpha=0.55, width=1.0, label="training batch"))
    if readings:
        marks.append(
            Scatter(
                x=probes,
                y=_gaps(losses),
                error=_array([r.loss_stderr for r in readings]),
                hollow=np.zeros(len(readings), dtype=bool),
                color="loss",
                size=_marker(readings),
                label="problem (± 1 s.e.)",
                hover=tuple(f"step {r.step}: loss {number(r.loss, r.loss_stderr)}" for r in readings),
            )
        )
    marks += missing_marks(np.concatenate([steps, probes]), np.concatenate([curve, losses]), y)
    return Panel(marks=tuple(marks), x=x, y=y, weight=1.0)


def _sharpness_panel(readings: list[Stability], x: Axis, left: Departure | None) -> Panel:
    steps = _array([step_of(r) for r in readings])
    sharpness, judged = _sharpness(readings)
    bound = _array([r.threshold for r in readings])
    errors = _errors(readings)
    y = fitted_axis(_quantity(readings), sharpness, bound, sharpness + errors)
    hollow = np.array([not r.converged for r in readings])
    marks: list[Mark] = []
    if np.isfinite(bound).any():
        top = np.full_like(bound, y.limits[1])
        marks += [
            Band(x=steps, low=bound, high=np.where(np.isfinite(bound), top, np.nan), color="bound", alpha=0.08),
            Line(x=steps, y=bound, color="bound", dash=True, width=1.5, label=_bound_label(readings)),
        ]
    marks += bound_marks(crossing(readings), left, below=y)
    marks += [
        Line(x=steps, y=_gaps(sharpness), color="curvature", alpha=0.5, width=1.0),
        Scatter(
            x=steps,
            y=_gaps(sharpness),
            error=errors,
            hollow=hollow,
            color="curvature",
            size=_marker(readings),
            label="sharpness" + (" (hollow: not converged)" if hollow.any() else ""),
            hover=tuple(_hover(r) for r in readings),
        ),
        *missing_marks(steps[judged], sharpness[judged], y),
        *unjudged_marks(steps[~judged]),
    ]
    return Panel(marks=tuple(marks), x=x, y=y, weight=1.0)


def _sharpness(readings: list[Stability]) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """What is held against the bound, and where there is one; the plain sharpness if no reading has a bound.

    Adam has no preconditioner before its first step: that reading is without a bound by rule and no failure.
    """
    held = _array([r.preconditioned_sharpness for r in readings])
    if not np.isfinite(held).any():
        return _array([r.sharpness for r in readings]), np.ones(len(readings), dtype=bool)
    return held, np.array([not unjudged(r) for r in readings]) | np.isfinite(held)


def _marker(readings: list[Stability]) -> float:
    return 4.5 if len(readings) <= 40 else 3.2


def _errors(readings: list[Stability]) -> Float[np.ndarray, " n"]:
    """Standard errors from the data; under a preconditioner the relative error of the plain sharpness is kept."""
    if all(map(unjudged, readings)):
        return _array([r.sharpness_stderr for r in readings])
    return _array([abs(r.threshold) * r.ratio_estimate.stderr if r.ratio else np.nan for r in readings])


def _preconditioned(readings: list[Stability]) -> bool:
    return any(np.isfinite(r.preconditioned_sharpness) and r.preconditioned_sharpness != r.sharpness for r in readings)


def _quantity(readings: list[Stability]) -> str:
    return "preconditioned sharpness" if _preconditioned(readings) else "sharpness λ₁ (loss per unit²)"


def _bound_label(readings: list[Stability]) -> str:
    rules = dict.fromkeys(r.rule for r in readings if r.rule and not unjudged(r))
    return f"stability bound: {next(iter(rules))}" if len(rules) == 1 else "stability bound"


def _hover(reading: Stability) -> str:
    state = "converged" if reading.converged else "NOT CONVERGED"
    ratio = number(reading.ratio, digits=3)
    held = f"{number(reading.preconditioned_sharpness)}<br>bound {number(reading.threshold)}, ratio {ratio}"
    if unjudged(reading):
        held = f"λ₁ {number(reading.sharpness)}<br>no bound to hold it against"
    return f"step {reading.step}: {held}<br>{state}, residual {number(reading.residual, digits=2)}"


def _caption(scalars: list[Scalars], readings: list[Stability], left: Departure | None) -> str:
    finite = [r for r in scalars if np.isfinite(r.values["loss"])]
    text = []
    if len(finite) < len(scalars):
        first = min(step_of(r) for r in scalars if not np.isfinite(r.values["loss"]))
        text.append(
            f"The training loss is not finite at {len(scalars) - len(finite)} of {len(scalars)} logged steps, "
            f"first at step {first}."
        )
    if not readings:
        return " ".join(text) or f"Training loss of {len(scalars)} logged steps."
    verdict = [_verdict(readings), departure_words(crossing(readings), left)]
    return " ".join(part for part in (*verdict, *text, unjudged_words(readings), _trust(readings)) if part)


def _verdict(readings: list[Stability]) -> str:
    first = crossing(readings)
    known = [r.ratio for r in readings if np.isfinite(r.ratio)]
    if first is None:
        if not known:
            return "No stability bound is known for this optimiser; the sharpness is shown alone."
        return f"Sharpness stays below its bound in all {len(known)} probes; the ratio reaches {max(known):.2f}."
    before = [r for r in readings if step_of(r) < step_of(first) and np.isfinite(r.ratio)]
    since = f", up from {before[-1].ratio:.2f} at step {before[-1].step}" if before else ", the first probe"
    return f"Sharpness is above its bound at step {first.step} (ratio {first.ratio:.2f}{since})."


def _trust(readings: list[Stability]) -> str:
    open_ = sum(not r.converged for r in readings)
    carried = ", carried over from that of the plain sharpness" if _preconditioned(readings) else ""
    errors = f"Error bars: one standard error from the data, where it is known{carried}."
    state = f"{open_} of {len(readings)} probes did not converge (hollow)." if open_ else "All probes converged."
    return f"{state} {errors}"


def _gaps(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.where(np.isfinite(values), values, np.nan)


def _array(values: Sequence[float | int]) -> Float[np.ndarray, " n"]:
    return np.asarray(values, dtype=np.float64).reshape(-1)
