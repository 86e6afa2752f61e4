"""One thing that the records say, with its evidence and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule found.

    Args:
        rule: name of the rule.
        severity: ``"critical"`` where the run is spoilt, ``"warning"`` where a number or the run is at risk,
            ``"info"`` for what is good to know.
        title: one line.
        message: what was measured, in sentences, with numbers and how far to trust them.
        advice: what to do.
        evidence: the numbers behind it, by name.
        step: the optimiser step it is about, None where there is none.
        reference: author and year of what the rule rests on.

    Raises:
        ValueError: the severity is none of the three.
    """

    rule: str
    severity: Severity
    title: str
    message: str
    advice: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    step: int | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"A finding's severity is one of {', '.join(SEVERITIES)}; found {self.severity!r}.")
        object.__setattr__(self, "evidence", MappingProxyType(dict(self.evidence)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (vars(self) | {"evidence": dict(self.evidence)},)

    def __str__(self) -> str:
        return f"[{self.severity}] {self.title}\n  {self.message}\n  What to do: {self.advice}"


def _restore(values: dict[str, Any]) -> Finding:
    return Finding(**values)
