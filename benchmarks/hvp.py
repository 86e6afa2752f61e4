"""Cost of one curvature product in gradients: the engines of theodolite beside its peers, in one run."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from contenders import COLUMNS, OURS, contenders
from models import Case, digits_resnet, mlp, transformer
from race import Effort, Row, race
from rich.console import Console
from rich.table import Table

# The most that a repeated product on the same batches may cost, in gradients.
MODELS: dict[str, tuple[Callable[[], Case], float]] = {
    "MLP": (mlp, 2.0),
    "ResNet": (digits_resnet, 2.7),
    "transformer": (transformer, 2.5),
}
JUDGED = ("H @ v, auto", f"H @ V ({COLUMNS}), auto")
FULL, QUICK = Effort(seconds=100.0, fewest=5, most=25), Effort(seconds=4.0, fewest=2, most=5, cut=8)
WRONG = 1e-4  # float32 rounding leaves less than 1e-6 on these models
PACKAGES = ("torch", "theodolite", "curvlinops-for-pytorch", "hessian-eigenthings", "PyHessian")
HEADERS = ("library", "product", "gradients", "quartiles", "construction", "first call", "relative error")


@dataclass(frozen=True)
class Section:
    """What was found on one model."""

    model: str
    facts: str
    target: float | None
    rows: list[Row]

    @property
    def verdict(self) -> str:
        """Whether our products with ``engine="auto"`` cost what they may; not said of a cut problem."""
        if self.target is None:
            return (
                "Not held to a target: small batches leave what a product costs beside its arithmetic in the figures."
            )
        found = {row.product: row.quartiles for row in self.rows if row.library == OURS and row.product in JUDGED}
        costs = [f"{product}: {cost[1]:.2f}" if cost else f"{product}: failed" for product, cost in found.items()]
        met = all(cost is not None and cost[1] <= self.target for cost in found.values())
        return f"Repeated products may cost {self.target} gradients: {'met' if met else 'MISSED'} ({', '.join(costs)})."

    @property
    def notes(self) -> list[str]:
        """What there is to say of rows, once for all rows of a library that share it."""
        said: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.note:
                said.setdefault((row.library, row.note), []).append(row.product)
        return [f"{library}, {' and '.join(products)}: {note}." for (library, note), products in said.items()]


def main() -> None:
    """Run all models, print a table for each, and write them where asked."""
    options = _options()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    console, effort = Console(width=options.width), QUICK if options.quick else FULL
    setting, sections = _setting(options), []
    console.print(setting, "", sep="\n", highlight=False)
    for name in options.models:
        make, target = MODELS[name]
        with console.status(f"{name}: first products, then rounds"):
            rows, facts = race(make(), contenders(), effort=effort, clock=clock)
        section = Section(name, facts, None if options.quick else target, rows)
        sections.append(section)
        _show(console, section)
        if options.out:
            options.out.write_text(_json(setting, sections))
            options.out.with_suffix(".md").write_text(_markdown(setting, sections))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the data and few rounds, under a minute")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="all by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1); one is timed in CPU seconds")
    parser.add_argument("--out", type=Path, help="write everything to this .json, and the tables to .md beside it")
    parser.add_argument("--width", type=int, help="columns of the terminal")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> str:
    timing = "CPU seconds" if options.threads == 1 else "wall-clock seconds"
    data = ", an eighth of the data" if options.quick else ""
    return (
        f"{platform.machine()} CPU, float32, {options.threads} thread(s), {timing}{data}; "
        f"Python {platform.python_version()}, {versions()}"
    )


def versions() -> str:
    """Of everybody that is compared."""
    return ", ".join(f"{package} {_version(package)}" for package in PACKAGES)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _show(console: Console, section: Section) -> None:
    grid = Table(*HEADERS, title=f"{section.model}: {section.facts}", title_justify="left")
    for column in grid.columns[2:]:
        column.justify = "right"
    for row in section.rows:
        grid.add_row(*_cells(row), style="bold" if row.library == OURS else "")
    console.print(grid, *section.notes, section.verdict, "", sep="\n", highlight=False, markup=False)


def _cells(row: Row) -> list[str]:
    """One line of the table; what was not measured stays empty."""
    low, middle, high = (f"{value:.2f}" for value in row.quartiles) if row.quartiles else ("", "", "")
    return [
        row.library,
        row.product,
        middle,
        f"{low} – {high}" if low else "",
        "" if row.construction is None else f"{row.construction:.1f}",
        "" if row.first is None else f"{row.first:.1f}",
        "" if row.error is None else f"{row.error:.0e}{' ✗' if row.error > WRONG else ''}",
    ]


def _json(setting: str, sections: list[Section]) -> str:
    models = {
        section.model: {
            "facts": section.facts,
            "target": section.target,
            "verdict": section.verdict,
            "rows": [asdict(row) | {"quartiles": row.quartiles} for row in section.rows],
        }
        for section in sections
    }
    return json.dumps({"setting": setting, "models": models}, indent=1, ensure_ascii=False) + "\n"


def _markdown(setting: str, sections: list[Section]) -> str:
    lines = [f"{setting}.", ""]
    for section in sections:
        lines += [f"### {section.model}", "", f"{section.facts[0].upper()}{section.facts[1:]}. {section.verdict}", ""]
        lines += [_line(HEADERS), _line(["---", "---", *["--:"] * (len(HEADERS) - 2)])]
        lines += [
            _line(
                [
                    f"**{cell}**" if place == 2 and row.library == OURS and cell else cell
                    for place, cell in enumerate(_cells(row))
                ]
            )
            for row in section.rows
        ]
        lines += ["", *(f"- {note}" for note in section.notes), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
