"""Run the rules over records and put the gravest finding first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from theodolite.forecasts.edge_of_stability import edge_of_stability
from theodolite.forecasts.finding import SEVERITIES, Finding
from theodolite.forecasts.non_finite import non_finite
from theodolite.forecasts.not_converged import not_converged
from theodolite.records import Record

Rule = Callable[[Sequence[Record]], Iterable[Finding]]

RULES: tuple[Rule, ...] = (edge_of_stability, non_finite, not_converged)


def findings(records: Iterable[Record], *, rules: Sequence[Rule] | None = None) -> tuple[Finding, ...]:
    """What the records of a run say.

    Args:
        records: of one run, in any order.
        rules: functions from records to findings; None for ``RULES``. Add your own with ``rules=(*RULES, mine)``.

    Returns:
        Critical findings first, then warnings, then what is good to know; within these in the order of the rules.

    Example:
        >>> from theodolite.records import Scalars
        >>> [finding.title for finding in findings([Scalars(step=3, values={"loss": float("nan")})])]
        ['loss is not finite at step 3']
    """
    kept = tuple(records)
    found = [finding for rule in (RULES if rules is None else rules) for finding in rule(kept)]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
