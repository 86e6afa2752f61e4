"""The command line: demo, survey, report, losses."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from theodolite.cli_losses import losses
from theodolite.errors import TheodoliteError

if TYPE_CHECKING:
    from theodolite.forecasts import Finding
    from theodolite.problem import Problem

# Exit codes: 0 done, 1 failed in whole or part, 2 wrong usage (typer's), 3 done, but --strict met a critical finding.
FAILED, CRITICAL = 1, 3

app = typer.Typer(
    help="Survey the geometry of training: curvature, landscape, gradients, and how far to trust each number.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(losses)
console = Console()
errors = Console(stderr=True)


def main() -> None:
    """Run the command line; errors of theodolite are one message on stderr and exit code 1."""
    try:
        app()
    except (TheodoliteError, ImportError) as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(str(error), markup=False, highlight=False)
        sys.exit(FAILED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run logs, figures and report.html.")] = Path("runs/demo"),
) -> None:
    """Train a ResNet on digits at a sound and at a diverging learning rate, survey both, and write a report."""
    from theodolite.demo import demonstrate

    with _progress() as progress:
        task = progress.add_task("starting", total=1.0)
        page, findings = demonstrate(
            out, on_progress=lambda what, share: progress.update(task, description=what, completed=share)
        )
    _print_findings(findings)
    console.print(f"\nThe report is at [bold]{page}[/]; open it in a browser.")


@app.command()
def survey(
    target: Annotated[
        str, typer.Argument(help="module:function, a function without arguments that returns a Problem.")
    ],
    log: Annotated[Path, typer.Option(help="Folder of the run log; appended to.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load: a state dict or .safetensors.")] = None,
    step: Annotated[int | None, typer.Option(help="Optimiser step of the checkpoint.")] = None,
    plan: Annotated[str, typer.Option(help="quick, standard or deep.")] = "standard",
    measure: Annotated[
        list[str] | None, typer.Option(help="What to measure instead of a plan; repeat for several.")
    ] = None,
    price: Annotated[bool, typer.Option("--price", help="Say what it will cost, and stop.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a finding is critical.")] = False,
) -> None:
    """Measure a problem at one point, saying first what it will cost; an interrupted survey resumes.

    Exits with 0 when every measure succeeded, 1 when one failed (the others are still taken and kept), 2 on wrong usage,
    3 with --strict when all succeeded and a finding is critical.
    """
    from theodolite.forecasts import load
    from theodolite.plans import FAILED as MEASURE_FAILED
    from theodolite.plans import PLANS, chosen, quote
    from theodolite.plans import survey as run_survey
    from theodolite.problem.checkpoint import load_checkpoint
    from theodolite.records import Event

    problem = _problem(target)
    if checkpoint is not None:
        load_checkpoint(problem.model, checkpoint)
    if plan not in PLANS:
        raise typer.BadParameter(f"expected one of {', '.join(PLANS)}, found {plan!r}", param_hint="--plan")
    asked = tuple(measure) if measure else plan
    names = [each.name for each in chosen(problem, asked)]
    try:
        console.print(str(quote(problem, measures=asked)), markup=False, highlight=False)
    except TheodoliteError as error:  # a product may be impossible where other measures are not
        if price:
            raise
        errors.print(f"What it will cost is unknown: {error}", markup=False, highlight=False)
    if price:
        return
    with _progress() as progress:
        task = progress.add_task("starting", total=1.0)
        records = run_survey(
            problem,
            measures=asked,
            log=log,
            step=step,
            seed=seed,
            on_progress=lambda what, share: progress.update(task, description=what, completed=share),
        )
    failed = [
        name
        for name, record in zip(names, records, strict=True)
        if isinstance(record, Event) and record.name == MEASURE_FAILED
    ]
    for record in records:
        console.print(repr(record), markup=False, highlight=False)
    if failed:
        _print_findings(load(log).findings())
        errors.print(f"[bold red]{len(failed)} of {len(names)} measures failed:[/] ", end="")
        errors.print(", ".join(failed), markup=False, highlight=False)
        raise typer.Exit(FAILED)
    _finish(load(log).findings(), strict=strict)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of run logs; several are compared on one page.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and SVG.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a finding is critical.")] = False,
) -> None:
    """Write the page of one or several runs; needs no model."""
    from theodolite.forecasts import load
    from theodolite.reports import report as write_report

    loaded = [load(run) for run in runs]
    page = write_report(loaded, out, figures=figures)
    findings = [finding for run in loaded for finding in run.findings()]
    console.print(f"The report is at [bold]{page}[/].")
    _finish(findings, strict=strict)


def _problem(target: str) -> Problem:
    """The problem that ``module:function`` returns; the working directory counts as a place for modules."""
    from theodolite.problem import Problem

    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise typer.BadParameter(f"expected module:function, found {target!r}", param_hint="TARGET")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise typer.BadParameter(f"no module {module!r} here or installed", param_hint="TARGET") from error
    except AttributeError as error:
        raise typer.BadParameter(f"module {module!r} has no {name!r}", param_hint="TARGET") from error
    if _needs_arguments(function):
        raise typer.BadParameter(f"{target} takes arguments, expected a function without any", param_hint="TARGET")
    problem = function()
    if not isinstance(problem, Problem):
        raise typer.BadParameter(f"{target} returned {type(problem).__name__}, expected a Problem", param_hint="TARGET")
    return problem


def _needs_arguments(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in optional for each in parameters)


def _progress() -> Progress:
    warnings.simplefilter("default")
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
    )


def _print_findings(findings: Sequence[Finding]) -> None:
    from theodolite.reports import terminal

    console.print(terminal(findings))


def _finish(findings: Sequence[Finding], *, strict: bool) -> None:
    _print_findings(findings)
    if strict and any(finding.severity == "critical" for finding in findings):
        raise typer.Exit(CRITICAL)
