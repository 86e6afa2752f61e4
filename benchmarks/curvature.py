"""Whole curvature questions put to theodolite and its peers in one run: gradients, products, and true residuals for everybody."""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import plain_gradient
from hvp import versions
from models import Case
from race import own
from rich.console import Console
from rich.table import Table
from surveys import (
    Answer,
    Question,
    all_fisher_eigenvalues,
    attention,
    fisher_case,
    inverse_products,
    surveys,
    top_fives,
    trace_products,
)
from torch import Tensor
from trained import digits_resnet, mlp, transformer

import theodolite as th

MODELS: dict[str, Callable[[], Case]] = {"MLP": mlp, "ResNet": digits_resnet, "transformer": transformer}
QUESTIONS: dict[str, Callable[[], list[Question]]] = {"survey": surveys, "top five": top_fives}
HEADERS = ("library", "asked", "gradients", "products", "worst true residual", "trace", "says")


@dataclass(frozen=True)
class Row:
    """What one library took and gave.

    Args:
        library: whose it is.
        asked: what it was asked.
        gradients: median over the rounds of its time, in gradients timed just before and after it.
        products: Hessian products.
        residual: the largest ‖Hv − λv‖ / |λ| of its pairs, in float64 by theodolite's operator.
        trace: and the error that it states.
        said: what else it says of itself, or how it failed.
    """

    library: str
    asked: str
    gradients: float = float("nan")
    products: float = float("nan")
    residual: float = float("nan")
    trace: str = ""
    said: str = ""


def main() -> None:
    """Ask everybody everything, print a table for each question and model, and write them where asked."""
    options = _options()
    torch.set_num_threads(1)
    console, found = Console(width=options.width), []
    console.print(versions(), highlight=False)
    for name in options.models:
        case = MODELS[name]()
        for title, questions in QUESTIONS.items():
            rows = [_ask(question, case, options.rounds) for question in questions()]
            _show(console, f"{name}: {title}", rows)
            found.append({"model": name, "question": title, "rows": [asdict(row) for row in rows]})
        if name == "MLP":
            _show_counts(console, case)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def _ask(question: Question, case: Case, rounds: int) -> Row:
    """The answer to one question; a peer that cannot run says why in its row."""
    try:
        importlib.import_module(question.module)
    except ModuleNotFoundError as error:
        return Row(question.library, question.asked, said=f"not installed ({error.name})")
    ratios, answer = [], Answer()
    try:
        for _ in range(rounds):
            answer, ratio = _timed(lambda model: question.answer(model), case)
            ratios.append(ratio)
    except Exception as error:  # whatever a library raises is what its row says
        return Row(question.library, question.asked, said=f"{type(error).__name__}: {str(error)[:120]}")
    trace = "" if answer.trace != answer.trace else f"{answer.trace:.4g} ± {answer.trace_stderr:.2g}"
    return Row(
        question.library,
        question.asked,
        gradients=median(ratios),
        products=answer.products,
        residual=_worst(case, answer),
        trace=trace,
        said=answer.said,
    )


def _timed(function: Callable[[Case], Any], case: Case) -> tuple[Any, float]:
    """What a function gives on a model of its own, and its CPU time in gradients timed before and after it."""
    mine = own(case)
    gradient = plain_gradient(own(case), torch.empty(0, 0)).multiply
    with warnings.catch_warnings(), attention():
        warnings.simplefilter("ignore")  # of the peers; ours are tested to be silent
        units = [_seconds(gradient) for _ in range(4)][1:]
        begin = time.process_time()
        answer = function(mine)
        spent = time.process_time() - begin
        units += [_seconds(gradient) for _ in range(3)]
    return answer, spent / median(units)


def _seconds(function: Callable[[], Tensor]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def _worst(case: Case, answer: Answer) -> float:
    """The largest relative residual of the pairs, of the same weights in float64."""
    H = th.Hessian(th.Problem(*own(case), dtype=torch.float64))
    V = answer.vectors.double().T
    V = V / V.norm(dim=0)
    values = answer.values.double()
    return float(((H @ V.contiguous() - V * values).norm(dim=0) / values.abs()).max())


def _show(console: Console, title: str, rows: list[Row]) -> None:
    table = Table(*HEADERS, title=title, title_justify="left")
    ours = rows[0].gradients
    for row in rows:
        times = f" (×{row.gradients / ours:.1f})" if row is not rows[0] else ""
        cells = (f"{row.gradients:.0f}{times}", f"{row.products:.0f}", f"{row.residual:.1e}", row.trace, row.said)
        table.add_row(row.library, row.asked, *cells)
    console.print(table)


def _show_counts(console: Console, case: Case) -> None:
    """The questions that are answered by a count, on the MLP."""
    costs = {who: _timed(answer, fisher_case())[1] for who, answer in all_fisher_eigenvalues().items()}
    said = {
        "gradients for eigenvalues of the empirical Fisher of 256 samples": costs,
        "products for an inverse product to 1e-3": inverse_products(case),
        "products for the trace to 1 %, after ten pairs are known": trace_products(case),
    }
    for what, figures in said.items():
        console.print(f"{what}: {', '.join(f'{who} {figure:.1f}' for who, figure in figures.items())}", highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to survey")
    parser.add_argument("--rounds", type=int, default=1, help="times that everybody is asked")
    parser.add_argument("--width", type=int, default=160, help="characters in a line")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
