"""Cost of all dot products of per-sample gradients in gradients: theodolite beside its peers, in one run."""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib.metadata
import math
import platform
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from models import Block, digits_resnet, mlp
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from theodolite.operators.capture import sample_gram
from theodolite.problem import Problem

Batch = tuple[Tensor, Tensor]
Call = Callable[[], Tensor]
PROBE = "Gram matrix of a quarter of the samples"
EVERY = 20  # steps between two surveys of gradients in training, for the amortised cost
PACKAGES = ("torch", "theodolite", "torchjd", "opacus")
HEADERS = ("library", "what", "gradients", "quartiles", "extra memory, MB", "relative error")


class Language(nn.Module):
    """Four pre-norm layers of width 128 on 1000 tokens, 1.05 M parameters; positions are fixed, as the peers need."""

    def __init__(self, length: int, *, width: int = 128, vocabulary: int = 1000) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        phases = torch.arange(length)[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.cat([phases.sin(), phases.cos()], dim=1))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).transpose(1, 2)


def language(samples: int, length: int) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (samples, length + 1))
    return Language(length).eval(), (tokens[:, :-1], tokens[:, 1:])


def first_batch(make: Callable[[], tuple[nn.Module, nn.Module, list[Batch]]], samples: int) -> tuple[nn.Module, Batch]:
    model, _, ((inputs, targets), *_) = make()
    return model.eval(), (inputs[:samples], targets[:samples])


# The model with its batch, and the most that the Gram matrix may cost, in gradients.
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Batch]], float | None]] = {
    "transformer, 32 × 64": (lambda: language(32, 64), 1.45),
    "transformer, 8 × 256": (lambda: language(8, 256), 1.15),
    "ResNet, 64 digits": (lambda: first_batch(digits_resnet, 64), None),
    "MLP, 128": (lambda: first_batch(mlp, 128), None),
}
MEMORY = 30.0  # MB that the transformers may take beyond a gradient


@dataclass
class Row:
    """What was measured of one contender, in gradients."""

    library: str
    what: str
    note: str = ""
    memory: float | None = None
    error: float | None = None
    ratios: list[float] = field(default_factory=list)


def plain(model: nn.Module, batch: Batch) -> Call:
    """A forward and backward pass."""

    def run() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return run


def ours(model: nn.Module, batch: Batch) -> Call:
    """Once to learn and to check; after that as in training, where the shape of batches is known."""
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    sample_gram(problem)
    return lambda: sample_gram(problem).gram


def ours_on_few(model: nn.Module, batch: Batch) -> Call:
    """The probe of training: a quarter of the batch."""
    few = len(batch[1]) // 4
    return ours(model, (batch[0][:few], batch[1][:few]))


def vmapped(model: nn.Module, batch: Batch) -> Call:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, x[None]), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def run() -> Tensor:
        return sum(
            (part.flatten(1) @ part.flatten(1).T for part in gradients(parameters, *batch).values()), torch.zeros(1)
        )

    return run


def torchjd(model: nn.Module, batch: Batch) -> Call:
    from torchjd.autogram import Engine

    engine = Engine(model, batch_dim=0)

    def run() -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none").flatten(1 if batch[1].dim() > 1 else 0)
        found: Tensor = engine.compute_gramian(losses.mean(1) if losses.dim() > 1 else losses)
        return found

    return run


def opacus(model: nn.Module, batch: Batch) -> Call:
    from opacus.grad_sample import GradSampleModule

    # Its hooks see nothing in evaluation; without dropout and BatchNorm, which it refuses, training is the same.
    wrapped = GradSampleModule(model.train(), batch_first=True, loss_reduction="mean")

    def run() -> Tensor:
        wrapped.zero_grad()
        F.cross_entropy(wrapped(batch[0]), batch[1]).backward()
        rows = [parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()]
        return sum((part @ part.T for part in rows), torch.zeros(1))

    return run


CONTENDERS: dict[tuple[str, str], Callable[[nn.Module, Batch], Call]] = {
    ("theodolite", "Gram matrix"): ours,
    ("theodolite", PROBE): ours_on_few,
    ("torch", "Gram matrix, vmap of grad"): vmapped,
    ("torchjd", "Gram matrix, Engine"): torchjd,
    ("opacus", "Gram matrix of grad_sample"): opacus,
}


def main() -> None:
    """Time all contenders on all models and print a table for each; or, called by itself, take one peak of memory."""
    options = _options()
    torch.set_num_threads(1)
    if options.peak:
        print(_peak(*options.peak))
        return
    console = Console(width=options.width)
    lines = [f"{_setting()}.", ""]
    console.print(lines[0], highlight=False)
    for name in options.models:
        rows, facts = _race(name, rounds=options.rounds)
        verdict = _verdict(name, rows)
        _show(console, name, facts, rows, verdict)
        lines += _markdown(name, facts, rows, verdict)
        if options.out:
            options.out.write_text("\n".join(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="all by default")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all contenders")
    parser.add_argument("--out", type=Path, help="write the tables to this .md")
    parser.add_argument("--width", type=int, help="columns of the terminal")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _setting() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{platform.machine()} CPU, float32, one thread, CPU seconds; {', '.join(versions)}"


def _race(name: str, *, rounds: int) -> tuple[list[Row], str]:
    """Every round times all contenders in a new order, each between two plain gradients."""
    model, batch = CASES[name][0]()
    exact = _reference(model, batch)
    rows, running = [], []
    for (library, what), build in CONTENDERS.items():
        row = Row(library, what)
        rows.append(row)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the peers; ours are tested to be silent
                call = build(copy.deepcopy(model), batch)
                found = call()
                row.error = _error(found, exact[: len(found), : len(found)])
        except Exception as error:  # whatever a library raises is what its row says
            row.note = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        row.memory = _memory(name, what)
        running.append((row, call))
    unit, order = plain(copy.deepcopy(model), batch), random.Random(0)
    unit()
    seconds = []
    for _ in range(rounds):
        for row, call in order.sample(running, len(running)):
            before, cost, after = _timed(unit), _timed(call), _timed(unit)
            row.ratios.append(2 * cost / (before + after))
            seconds.append(before)
    n = sum(parameter.numel() for parameter in model.parameters())
    return rows, f"{n:,} parameters, inputs {tuple(batch[0].shape)}, one gradient {1e3 * median(seconds):.0f} ms"


def _timed(call: Call) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def _reference(model: nn.Module, batch: Batch) -> Tensor:
    """The Gram matrix in float64, one sample after the other."""
    exact = copy.deepcopy(model).double()
    inputs = batch[0].double() if batch[0].is_floating_point() else batch[0]
    rows = []
    for x, y in zip(inputs, batch[1], strict=True):
        loss = F.cross_entropy(exact(x[None]), y[None])
        rows.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(exact.parameters()))]))
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative distance up to one factor: peers leave out the weights of the mean."""
    found = found.detach().double()
    found = found * (found * exact).sum() / found.square().sum()
    return float((found - exact).norm() / exact.norm())


def _memory(name: str, what: str) -> float:
    """MB at the peak of a later call beyond the peak of a gradient, each in a process of its own."""
    return _peak_apart(name, what) - _peak_apart(name, "gradient")


@cache
def _peak_apart(name: str, what: str) -> float:
    command = [sys.executable, __file__, "--peak", name, what]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak(name: str, what: str) -> float:
    model, batch = CASES[name][0]()
    unit = plain(model, batch)
    for _ in range(3):
        unit()
    build = next((build for (_, said), build in CONTENDERS.items() if said == what), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = build(model, batch)
        call()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        call()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _verdict(name: str, rows: list[Row]) -> str:
    mine, probe = rows[:2]
    cost, limit = float(median(mine.ratios)), CASES[name][1]
    parts = [f"A probe every {EVERY} steps takes {100 * float(median(probe.ratios)) / EVERY:.1f} % of training"]
    if limit is not None and mine.memory is not None:
        parts.append(f"may cost {limit}: {'met' if cost <= limit else 'MISSED'} ({cost:.2f})")
        parts.append(f"may take {MEMORY:.0f} MB: {'met' if mine.memory <= MEMORY else 'MISSED'} ({mine.memory:.0f})")
    parts += [
        f"{(median(row.ratios) - 1) / (cost - 1):.1f} times less overhead than {row.library}"
        for row in rows[2:]
        if row.ratios
    ]
    return "; ".join(parts) + "."


def _cells(row: Row) -> list[str]:
    if not row.ratios:
        return [row.library, f"{row.what} ({row.note})", "", "", "", ""]
    low, middle, high = np.percentile(row.ratios, [25, 50, 75]).tolist()
    memory = "" if row.memory is None else f"{row.memory:.0f}"
    return [row.library, row.what, f"{middle:.2f}", f"{low:.2f} – {high:.2f}", memory, f"{row.error:.0e}"]


def _show(console: Console, name: str, facts: str, rows: list[Row], verdict: str) -> None:
    grid = Table(*HEADERS, title=f"{name}: {facts}", title_justify="left")
    for row in rows:
        grid.add_row(*_cells(row), style="bold" if row.library == "theodolite" else "")
    console.print(grid, verdict, "", sep="\n", highlight=False, markup=False)


def _markdown(name: str, facts: str, rows: list[Row], verdict: str) -> list[str]:
    table = [HEADERS, ("---", "---", *["--:"] * (len(HEADERS) - 2)), *(_cells(row) for row in rows)]
    return [f"### {name}", "", f"{facts}. {verdict}", "", *(f"| {' | '.join(cells)} |" for cells in table), ""]


if __name__ == "__main__":
    main()
