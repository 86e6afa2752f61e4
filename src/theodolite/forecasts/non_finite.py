"""Rule: readings that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from theodolite.forecasts.finding import Finding
from theodolite.forecasts.order import at, step_order
from theodolite.records import Density, Gradients, Record, Scalars, Snapshot, Spectrum, Stability, Trace

_NAMED = 6  # places that are written out


def non_finite(records: Sequence[Record]) -> Iterable[Finding]:
    """Name the first step at which a loss, norm, eigenvalue, trace or parameter was not finite, and all places since.

    Lines and planes are left out: they leave the run's path on purpose, and infinity there is a reading.
    """
    ordered = sorted(records, key=step_order)
    found = [(record.step, place, value) for record in ordered for place, value in _places(record)]
    if not found:
        return []
    step = found[0][0]
    first = {place: value for when, place, value in found if when == step}
    names = list(first)
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    earlier = max((one.step for one in ordered if one.step is not None and one.step < (step or 0)), default=None)
    return [
        Finding(
            rule="non-finite reading",
            severity="critical",
            title=f"{title} {'is' if len(names) == 1 else 'are'} not finite {at(step)}",
            message=_message(found, first, step, earlier),
            advice=(
                "Go back to a checkpoint before that step. If the stability ratio was above 1, lower the learning rate; "
                "otherwise look at the batch of that step, at logarithms and divisions of small numbers, and at overflow "
                "in half precision (loss scale, bfloat16 instead of float16)."
            ),
            evidence={"readings": len(found), "first": names[0], "value": first[names[0]]},
            step=step,
        )
    ]


def _message(
    found: list[tuple[int | None, str, float]], first: dict[str, float], step: int | None, earlier: int | None
) -> str:
    later: dict[str, int | None] = {}
    for when, place, _ in found:
        if place not in first:
            later.setdefault(place, when)
    words = f"Not finite {at(step)}: {_listed([f'{place} = {value:g}' for place, value in first.items()])}."
    if later:
        words += f" Later also {_listed([f'{place} ({at(when)})' for place, when in later.items()])}."
    if earlier is not None:
        words += f" The last records before it are from step {earlier:,}."
    return words


def _listed(items: list[str]) -> str:
    more = [f"{len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return ", ".join([*items[:_NAMED], *more])


def _places(record: Record) -> Iterator[tuple[str, float]]:
    """Where a record is not finite, with the value there."""
    for place, value in _readings(record):
        bad = np.asarray(value)[~np.isfinite(value)]
        if bad.size:
            yield place, float(bad.flat[0])


def _readings(record: Record) -> Iterator[tuple[str, float | np.ndarray]]:
    """Names and values of what must be finite in a record; errors may be unknown, hence NaN."""
    match record:
        case Scalars():
            yield from record.values.items()
        case Stability():
            yield from (
                ("probe loss", record.loss),
                ("gradient norm", record.gradient_norm),
                ("sharpness", record.sharpness),
            )
        case Gradients():
            yield from (("probe loss", record.loss), ("gradient norm", record.norm))
            yield from (
                (f"gradient norm of {name}", norm) for name, norm in zip(record.layers, record.layer_norms, strict=True)
            )
            yield from (
                (f"norm of {name}", norm) for name, norm in zip(record.layers, record.parameter_norms, strict=True)
            )
        case Spectrum():
            yield f"eigenvalues of the {record.operator}", record.eigenvalues
        case Density():
            yield f"spectral density of the {record.operator}", record.nodes[record.weights > 0]
        case Trace():
            yield f"trace of the {record.operator}", record.value
        case Snapshot():
            yield "parameters", record.parameters
