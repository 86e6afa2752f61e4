"""Plain rows under headings, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from theodolite.forecasts import Finding
from theodolite.reports.wording import number

SEVERITIES: Mapping[str, tuple[str, str]] = {
    "critical": ("✖", "bold red"),
    "warning": ("▲", "bold yellow"),
    "info": ("●", "bold blue"),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text.

    Args:
        title: what the rows are.
        columns: headings.
        rows: one text a column.
        words: number of leading columns that hold words and are set flush left; the others hold numbers.
        note: what a reader must know to read it.
        folded: whether a page shows it only on demand.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""
    folded: bool = False


def terminal(findings: Sequence[Finding]) -> RenderableType:
    """Findings for the terminal, in the order given.

    Args:
        findings: of one run.

    Returns:
        What ``rich.print`` takes; a single line if there are none.

    Example:
        >>> from rich.console import Console
        >>> Console().print(terminal([]))
        No rule found anything to report.
    """
    if not findings:
        return Text("No rule found anything to report.")
    return Group(*(_card(finding) for finding in findings))


def terminal_table(table: Table) -> RichTable:
    """A table for the terminal.

    Args:
        table: the rows.

    Returns:
        What ``rich.print`` takes.
    """
    rich = RichTable(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(table.columns):
        rich.add_column(Text(column), justify="left" if index < table.words else "right")
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    return rich


def evidence_rows(finding: Finding) -> list[tuple[str, str]]:
    """Names and values of a finding's evidence, in words; ``x_stderr`` becomes the error of ``x``."""
    evidence = finding.evidence
    return [
        (name.replace("_", " "), _value(value, evidence.get(f"{name}_stderr", math.nan)))
        for name, value in evidence.items()
        if name.removesuffix("_stderr") == name or name.removesuffix("_stderr") not in evidence
    ]


def _card(finding: Finding) -> RenderableType:
    icon, style = SEVERITIES[finding.severity]
    where = "" if finding.step is None else f" at step {finding.step:,}"
    head = Text.assemble((f"{icon} {finding.severity}{where} ", style))
    body = Text(finding.message)
    if finding.evidence:
        pairs = ", ".join(f"{name} {value}" for name, value in evidence_rows(finding))
        body.append(f"\n{pairs}", style="dim")
    body.append("\nWhat to do: ", style="bold").append(finding.advice)
    head.append(finding.title, style="bold")
    return Panel(body, title=head, title_align="left", border_style=style.split()[-1])


def _value(value: float | int | str, error: float | int | str) -> str:
    if isinstance(value, float) and isinstance(error, float):
        return number(value, error)
    return f"{value:,}" if isinstance(value, int) else str(value)
