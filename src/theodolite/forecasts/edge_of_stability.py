"""Rule: the sharpness against the bound of the optimiser, and what the loss did after it was crossed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from theodolite.forecasts.finding import Finding, Severity
from theodolite.forecasts.learning_rate import preconditioned, rate_advice, rate_source, rates_allowed
from theodolite.forecasts.loss_range import Excursion, excursion
from theodolite.forecasts.order import at, by_step
from theodolite.records import Record, Stability
from theodolite.records.text import plural

_RULE = "edge of stability"
_REFERENCE = "Cohen et al. 2021 (edge of stability); Gilmer et al. 2021 (curvature and training instability)"
_HOVER = 0.2  # runs hover just above the bound (Cohen et al. 2021); a fifth leaves room for the error of the data
_HOVER_READINGS = 3
_FEW_CHUNKS = 5  # with fewer the error itself is uncertain by more than a third: 1/√(2(c − 1))


def edge_of_stability(records: Sequence[Record]) -> Iterable[Finding]:
    """Say when the stability ratio first exceeded 1, for how long, and whether the loss then left its range.

    Critical if the loss left its range at or after the crossing; a warning if the ratio is above 1 at the end; otherwise
    information: it hovers at the edge (at least three readings from the crossing on, all within a fifth of 1), came
    back below, or never crossed. "Crossed" is only said of a reading that converged, or that neither its residual nor
    twice the error of the data could bring below 1.

    References:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability.
        Gilmer et al. (2021), A loss curvature perspective on training instability in deep learning.
    """
    readings = by_step(records, Stability)
    known = [reading for reading in readings if not math.isnan(reading.ratio)]
    if not known:
        # Where the sharpness itself is NaN, that is for the rule on non-finite readings to say.
        unknown = [reading for reading in readings if math.isfinite(reading.sharpness)]
        return [_unknown(unknown)] if unknown else []
    first = next((index for index, reading in enumerate(known) if reading.crossed), None)
    step = known[first or 0].step
    left = None if step is None else excursion(records, after=step)
    if first is None:
        return [_headroom(known, left)]
    return [_crossing(known, first, left)]


def _certain(reading: Stability) -> bool:
    """Whether the reading converged, or no error of it reaches down to 1."""
    stderr = reading.ratio_estimate.stderr
    errors = reading.ratio * reading.residual + (0.0 if math.isnan(stderr) else 2 * stderr)
    return reading.converged or reading.ratio - errors > 1


def _crossing(known: list[Stability], first: int, left: Excursion | None) -> Finding:
    reading, later = known[first], known[first:]
    before = known[first - 1] if first else None
    # What is measured after the loss has gone says nothing about why it went.
    judged = later if left is None else [one for one in later if one.step is None or one.step <= left.step]
    severity, outcome = _outcome(later, left)
    message = [_first_words(reading, before), _doubt(later), _stay(judged), _loss_words(reading, left)]
    return Finding(
        rule=_RULE,
        severity=severity,
        title=_title(reading, outcome),
        message=" ".join(part for part in message if part),
        advice=rate_advice(known[: first + 1], judged if left is None else [], harmless=severity == "info"),
        evidence=_evidence(reading, before, judged, left) | rates_allowed(known[: first + 1], judged),
        step=reading.step,
        reference=_REFERENCE,
    )


def _title(reading: Stability, outcome: str) -> str:
    certain = _certain(reading)
    if reading.step is None:
        return f"The sharpness {'is' if certain else 'may be'} above the stability bound: ratio {reading.ratio:.3g}"
    return (
        f"The sharpness {'crossed' if certain else 'may have crossed'} the stability bound {at(reading.step)}{outcome}"
    )


def _outcome(later: list[Stability], left: Excursion | None) -> tuple[Severity, str]:
    last = later[-1]
    if left is not None:
        return "critical", f", and the loss left its range at step {left.step:,}"
    if _hovers(later):
        return "info", f" and hovers there: {_span(later)} since"
    if last.crossed:
        return "warning", f" and is above it at the end: ratio {last.ratio:.3g} {at(last.step)}"
    return "info", f" and came back below: ratio {last.ratio:.3g} {at(last.step)}"


def _hovers(later: list[Stability]) -> bool:
    return len(later) >= _HOVER_READINGS and all(abs(reading.ratio - 1) <= _HOVER for reading in later)


def _span(readings: list[Stability]) -> str:
    ratios = [reading.ratio for reading in readings]
    return f"ratio {min(ratios):.3g} to {max(ratios):.3g}"


def _first_words(reading: Stability, before: Stability | None) -> str:
    sharpness = "preconditioned sharpness" if preconditioned(reading) else "sharpness"
    words = (
        f"{at(reading.step).capitalize()} the {sharpness} was {reading.preconditioned_sharpness:.4g} against the bound "
        f"{reading.threshold:.4g} of {reading.optimizer} ({reading.rule}): ratio {_ratio(reading)}."
    )
    if before is not None:
        words += f" The reading before, {at(before.step)}, was {_ratio(before)}."
    if not reading.converged:
        words += f" It did not converge: residual {reading.residual:.1g}, tolerance {reading.tol:.1g}."
    low = reading.ratio_estimate.interval()[0]
    if low <= 1:
        words += " The error of the data reaches below 1: another sample may put it on the other side."
    return words + _few_chunks(reading)


def _few_chunks(reading: Stability) -> str:
    """What to think of an error that a handful of chunks gave."""
    chunks = reading.context.get("chunks")
    if math.isnan(reading.ratio_estimate.stderr) or not isinstance(chunks, int) or chunks >= _FEW_CHUNKS:
        return ""
    return f" The error of the data rests on only {plural(chunks, 'chunk')}: take it as an order of magnitude."


def _doubt(later: list[Stability]) -> str:
    if _certain(later[0]):
        return ""
    sure = next((reading for reading in later[1:] if reading.crossed and _certain(reading)), None)
    return "No later reading settles it." if sure is None else f"The first reading beyond doubt is {at(sure.step)}."


def _ratio(reading: Stability) -> str:
    estimate = reading.ratio_estimate
    return f"{reading.ratio:.3g}" if math.isnan(estimate.stderr) else str(estimate)


def _stay(judged: list[Stability]) -> str:
    above = [reading for reading in judged if reading.crossed]
    peak = max(judged, key=lambda reading: reading.ratio)
    if len(judged) == 1:
        return ""
    return (
        f"From there on it was above 1 in {len(above)} of {len(judged)} readings, last {at(above[-1].step)}, and at "
        f"most {peak.ratio:.3g} ({at(peak.step)})."
    )


def _loss_words(reading: Stability, left: Excursion | None) -> str:
    if left is None:
        return "" if reading.step is None else "No loss left its range."
    warning = left.step - (reading.step or 0)
    return f"{_departure_words(left)}; the crossing came {plural(warning, 'step')} before: that much warning there was."


def _departure_words(left: Excursion) -> str:
    back = "ended inside again" if left.came_back else "ended outside"
    return (
        f"The {left.name} left its range at step {left.step:,} with {left.value:.4g} and {back}, at {left.last_value:.4g}. "
        f"Its range: {left.rule}"
    )


def _evidence(
    reading: Stability, before: Stability | None, judged: list[Stability], left: Excursion | None
) -> dict[str, float | int | str]:
    above, peak = [one for one in judged if one.crossed], max(judged, key=lambda one: one.ratio)
    evidence: dict[str, float | int | str] = {
        "ratio": reading.ratio,
        "ratio_stderr": reading.ratio_estimate.stderr,
        "sharpness": reading.preconditioned_sharpness,
        "threshold": reading.threshold,
        "residual": reading.residual,
        "readings_above": len(above),
        "readings_since": len(judged),
        "largest_ratio": peak.ratio,
        "largest_ratio_stderr": peak.ratio_estimate.stderr,
    }
    if before is not None:
        evidence["ratio_before"] = before.ratio
    if before is not None and before.step is not None:
        evidence["step_before"] = before.step
    if above[-1].step is not None and reading.step is not None:
        evidence["steps_above"] = above[-1].step - reading.step
    if left is not None and reading.step is not None:
        evidence |= _loss_evidence(left) | {"steps_of_warning": left.step - reading.step}
    return evidence


def _loss_evidence(left: Excursion) -> dict[str, float | int | str]:
    return {"loss": left.name, "loss_left_step": left.step, "loss_value": left.value, "loss_limit": left.limit}


def _headroom(known: list[Stability], left: Excursion | None) -> Finding:
    peak = max(known, key=lambda reading: reading.ratio)
    evidence: dict[str, float | int | str] = {
        "largest_ratio": peak.ratio,
        "largest_ratio_stderr": peak.ratio_estimate.stderr,
        "headroom": 1 / peak.ratio if peak.ratio > 0 else math.inf,
        "readings": len(known),
        "learning_rate": peak.learning_rate,
        "learning_rate_allowed": peak.max_learning_rate,
    }
    title = f"The sharpness stayed below the stability bound: ratio at most {peak.ratio:.3g}"
    if left is not None:
        title += f", yet the loss left its range at step {left.step:,}"
        evidence |= _loss_evidence(left)
    return Finding(
        rule=_RULE,
        severity="info" if left is None else "warning",
        title=title,
        message=_below_words(known, peak, left),
        advice=_headroom_advice(peak, left),
        evidence=evidence,
        step=peak.step if left is None else left.step,
        reference=_REFERENCE,
    )


def _below_words(known: list[Stability], peak: Stability, left: Excursion | None) -> str:
    words = (
        f"In {plural(len(known), 'reading')} the stability ratio of {peak.optimizer} ({peak.rule}) was at most {_ratio(peak)}, "
        f"{at(peak.step)}."
    )
    if not peak.converged:
        words += f" That reading did not converge (residual {peak.residual:.1g}): the sharpness may be higher."
    if peak.ratio_estimate.interval()[1] >= 1:
        words += " The error of the data reaches 1: on another sample it may be across."
    words += _few_chunks(peak)
    if left is not None:
        words += f" {_departure_words(left)}."
    return words


def _headroom_advice(peak: Stability, left: Excursion | None) -> str:
    if left is not None:
        return (
            "These readings do not explain it. Measure more often around that step (a smaller every): the sharpness may have "
            "peaked in between; and look at the batch of that step, whose own curvature may be far larger."
        )
    allowed = peak.max_learning_rate
    if math.isinf(allowed):
        return "No reading found upward curvature, so that this bound limits no learning rate there."
    if peak.ratio == 0:
        rest = f"The learning rate was 0 {at(peak.step)}"
        if math.isnan(allowed):
            return f"{rest}: nothing can cross there."
        return f"{rest}; the sharpness there would allow {allowed:.3g} ({rate_source(peak)})."
    return (
        f"The learning rate could rise from {peak.learning_rate:.3g} to {allowed:.3g} ({rate_source(peak)}) before "
        "that reading would touch the bound; the sharpness between readings, and at another rate, is not known."
    )


def _unknown(readings: list[Stability]) -> Finding:
    last = readings[-1]
    return Finding(
        rule=_RULE,
        severity="info",
        title=f"The stability bound of {last.optimizer} is not known",
        message=f"{plural(len(readings), 'reading')} of the sharpness, and nothing to hold it against.",
        advice=f"Compare the sharpness, {last.sharpness:.4g} {at(last.step)}, with earlier runs of the same optimiser.",
        evidence={"readings": len(readings), "sharpness": last.sharpness},
        step=last.step,
        reference=_REFERENCE,
    )
