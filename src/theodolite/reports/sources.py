"""What a report may be asked for: runs, books, folders, or several of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from theodolite.forecasts import Finding, Run, findings, load
from theodolite.records import Book, Record
from theodolite.reports.wording import slug

Reportable = Run | Book | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One run as a report sees it.

    Args:
        name: of its folder.
        slug: the name as an anchor, unique among the runs of a report.
        records: in the order in which they were written, without what a later start of the run has overtaken.
        findings: what the rules say of them.
        notes: what could not be read.
    """

    name: str
    slug: str
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def sources(what: object) -> tuple[Source, ...]:
    """Read what a report is asked for.

    Args:
        what: a run, a book, the folder of a run log, or several of these.

    Returns:
        One source a run.

    Raises:
        TypeError: if it is something else.
        ValueError: if nothing was given.
        LogError: if a folder cannot be read.
    """
    several = [what] if isinstance(what, Run | Book | str | os.PathLike) else list(_iterated(what))
    if not several:
        raise ValueError("A report needs at least one run; found none. Give a folder, a run, or a list of them.")
    read = [_source(each, index) for index, each in enumerate(several, start=1)]
    return tuple(read)


def _overtaken(run: Book) -> tuple[str, ...]:
    count = len(run.records) - len(run.current)
    return (
        (f"{count:,} records of an earlier start of this run are left out: a later one repeats their steps",)
        if count
        else ()
    )


def _iterated(what: object) -> Iterable[object]:
    if isinstance(what, Iterable):
        return what
    raise TypeError(_refusal(what))


def _source(what: object, index: int) -> Source:
    if isinstance(what, Run | Book):
        run = what
    elif isinstance(what, str | os.PathLike):
        run = load(what)
    else:
        raise TypeError(_refusal(what))
    name = os.path.basename(os.path.abspath(run.path)) or f"run {index}"
    return Source(
        name=name,
        slug=slug(f"run-{index}-{name}"),
        records=run.current,
        findings=run.findings() if isinstance(run, Run) else findings(run.current),
        notes=(*run.notes, *_overtaken(run)),
    )


def _refusal(what: object) -> str:
    return (
        "A report expects the folder of a run log, theodolite.load(folder), a Book, or a list of these; "
        f"found {what!r} ({type(what).__name__})."
    )
