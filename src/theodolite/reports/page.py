"""One self-contained page: findings first, then every lens with its figures and numbers; it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from theodolite.forecasts import Finding
from theodolite.reports.extras import extra
from theodolite.reports.facts import facts, workings
from theodolite.reports.figures import Figure
from theodolite.reports.files import save_all
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.overview import comparison_table, costs_table, events_table
from theodolite.reports.palette import DARK, LIGHT, TOKENS
from theodolite.reports.plotly_backend import specification
from theodolite.reports.sections import Section, sections
from theodolite.reports.sources import Reportable, Source, sources
from theodolite.reports.tables import SEVERITIES, Table, evidence_rows

View = dict[str, Any]  # what the template reads
Drawings = dict[str, View]  # Plotly specifications by anchor
LONG_TABLE = 16  # rows from which a table is folded


def report(
    what: Reportable | Iterable[Reportable],
    out: str | os.PathLike[str] = "report.html",
    *,
    figures: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of one or several runs.

    The page is one file that needs no network: Plotly is inlined, and its content security policy forbids loading
    anything. It is readable without JavaScript, where the figures are static. The same records give the same bytes.

    Cost: about half a second a figure, and 5 MB for the file.

    Args:
        what: the folder of a run log, a `Run`, a `Book`, or several of these.
        out: where to write the page; missing folders are made.
        figures: folder for the figures as PNG and SVG files, one sub-folder a run when there are several.

    Returns:
        The path of the page.

    Raises:
        TypeError: if ``what`` is something else.
        ValueError: if nothing was given.
        ImportError: without matplotlib, plotly or jinja2.

    Example:
        >>> import tempfile
        >>> from theodolite.records import Log, Scalars
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Log(folder / "mlp") as log:
        ...     line = log.append(Scalars(step=0, values={"loss": 0.5}))
        >>> report(folder / "mlp", folder / "report.html").name
        'report.html'
    """
    runs = sources(what)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(html(runs), encoding="utf-8", newline="\n")
    partial.replace(path)
    if figures is not None:
        for run in runs:
            folder = Path(figures) if len(runs) == 1 else Path(figures) / run.slug
            save_all(run.records, folder, formats=("png", "svg"), theme="light")
    return path


def html(runs: Sequence[Source]) -> str:
    """The page itself.

    Args:
        runs: what it is about.

    Returns:
        One HTML document.
    """
    jinja2, markup = extra("jinja2"), extra("markupsafe").Markup
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    drawings: Drawings = {}
    views = [_run(run, drawings) for run in runs]
    scripts = [_plotly(), _file("page.js")] if drawings else []
    text: str = environment.from_string(_file("page.html.j2")).render(
        title=_title(runs),
        runs=views,
        several=len(runs) > 1,
        comparison=_table(comparison_table(runs)) if len(runs) > 1 else None,
        policy=_policy(scripts),
        style=markup(_file("page.css")),
        scripts=[markup(script) for script in scripts],
        data=markup(_json({"palettes": {"light": LIGHT, "dark": DARK}, "figures": drawings})),
    )
    return text


def _run(run: Source, drawings: Drawings) -> View:
    return {
        "name": run.name,
        "slug": run.slug,
        "empty": not run.records,
        "facts": facts(run.records),
        "workings": workings(run.records),
        "notes": run.notes,
        "findings": [_finding(finding) for finding in run.findings],
        "counts": [(name, count) for name in SEVERITIES if (count := sum(f.severity == name for f in run.findings))],
        "sections": [_section(section, run.slug, drawings) for section in sections(run.records)],
        "costs": _table(costs_table(run.records)),
        "events": _table(events_table(run.records)),
    }


def _finding(finding: Finding) -> View:
    return {
        "severity": finding.severity,
        "title": finding.title,
        "rule": finding.rule,
        "message": finding.message,
        "advice": finding.advice,
        "evidence": evidence_rows(finding),
        "step": None if finding.step is None else f"{finding.step:,}",
        "reference": finding.reference,
    }


def _section(section: Section, slug: str, drawings: Drawings) -> View:
    blocks = [
        {
            "title": block.title,
            "figure": None if block.figure is None else _figure(block.figure, slug, drawings),
            "tables": [_table(table) for table in block.tables],
            "origin": block.origin,
            "notes": block.notes,
            "half": block.half,
        }
        for block in section.blocks
    ]
    return {"id": f"{slug}-{section.name}", "title": section.title, "blocks": blocks}


def _figure(figure: Figure, slug: str, drawings: Drawings) -> View:
    key = f"{slug}-{figure.name}"
    drawings[key] = specification(figure, colors=TOKENS)
    image = base64.b64encode(render(figure, format="svg", title=False)).decode("ascii")
    return {
        "id": key,
        "alt": f"{figure.title}. {figure.caption}",
        "caption": figure.caption,
        "limits": figure.limits,
        "fixed": any(panel.aspect is not None for panel in figure.panels),
        "width": figure.width,
        "height": figure.height,
        "image": image,
    }


def _table(table: Table) -> View:
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": table.rows,
        "words": table.words,
        "note": table.note,
        "folded": table.folded or len(table.rows) > LONG_TABLE,
    }


def _title(runs: Sequence[Source]) -> str:
    names = [run.name for run in runs]
    if len(names) > 4:
        return f"Survey of {len(names)} runs"
    return "Survey of " + (", ".join(names[:-1]) + " and " if len(names) > 1 else "") + names[-1]


def _file(name: str) -> str:
    return (resources.files("theodolite.reports") / "templates" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    extra("plotly")
    path = resources.files("plotly") / "package_data" / "plotly.min.js"
    # A browser hashes the text after it has turned CR LF into LF.
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy(scripts: Iterable[str]) -> str:
    """Nothing is loaded and no script runs but the ones written here; Plotly sets styles in elements."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
