"""The pictures of docs/landscapes.md and the numbers beside them: a small network on digits, a deep one with and without skips.

python benchmarks/landscape_pictures.py                       to docs/images; three minutes on one core
python benchmarks/landscape_pictures.py --log runs/digits     also a run log of every record, for theodolite report
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import theodolite as th
from theodolite.demo import digits
from theodolite.landscapes import at_checkpoint, atlas, follow, line, plane
from theodolite.landscapes.paths import bezier, connectivity, path
from theodolite.records import Atlas, Line, Log, Plane, Record
from theodolite.records import Path as PathRecord
from theodolite.reports import figures
from theodolite.reports.matplotlib_backend import render

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CRITERION = nn.CrossEntropyLoss()
STEPS = (0, 10, 20, 40, 80, 160, 320, 640)


def network(seed: int) -> nn.Module:
    """64-48-48-10 with ReLU, 5,962 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


class Deep(nn.Module):
    """24 layers of 24 units with ReLU; with ``skip``, each adds to what it is given, scaled to keep its size."""

    def __init__(self, *, skip: bool, seed: int, depth: int = 24, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.skip, self.share = skip, depth**-0.5
        for layer in (self.first, *self.layers):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        for layer in self.layers:
            x = x + self.share * layer(x).relu() if self.skip else layer(x).relu()
        return self.last(x)


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], *, steps: int, seed: int, batch: int = 64, lr: float = 2e-3
) -> tuple[torch.optim.Adam, dict[int, nn.Module]]:
    """Adam on random batches, and copies of the model on the way."""
    inputs, targets = data
    optimizer, order = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    copies = {}
    for step in range(steps + 1):
        if step in STEPS:
            copies[step] = copy.deepcopy(model)
        if step == steps:
            break
        chosen = torch.randint(len(targets), (batch,), generator=order)
        optimizer.zero_grad()
        CRITERION(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    return optimizer, copies


def records_of_digits() -> Iterator[Record]:
    """Every kind of landscape of one small network, and of three of them."""
    inputs, targets = digits()
    batches = list(zip(inputs.split(120), targets.split(120), strict=True))
    model = network(0)
    optimizer, copies = train(model, (inputs, targets), steps=640, seed=0)
    problem = th.Problem(model, CRITERION, batches)
    yield atlas(problem, optimizer=optimizer, step=640)
    yield plane(problem, interpolate=1e-3, quadratic=True, cap=1e3, step=640)
    yield follow(problem, copies, step=640)
    for step, checkpoint in copies.items():
        for seed in range(3):
            yield line(at_checkpoint(problem, checkpoint), points=41, seed=seed, step=step)
    others = {}
    for seed in range(3):
        others[f"seed {seed}"] = network(seed)
        train(others[f"seed {seed}"], (inputs, targets), steps=640, seed=seed)
    start, end = others["seed 0"], others["seed 1"]
    bent = bezier(problem, start, end, steps=300, seed=0)
    yield path(problem, start, end, points=25, aligned=True, curves={"bezier": bent}, predict=True)
    yield connectivity(problem, others | {"step 160": copies[160]})


def deep(*, skip: bool, seed: int) -> Plane:
    """The plane around a deep network after 1,500 steps, on 512 digits."""
    inputs, targets = digits()
    model = Deep(skip=skip, seed=seed)
    train(model, (inputs, targets), steps=1500, seed=seed + 1, batch=128, lr=1e-3)
    batches = list(zip(inputs[:512].split(128), targets[:512].split(128), strict=True))
    return plane(th.Problem(model, CRITERION, batches), points=41, seed=seed)


def roughness(record: Plane) -> float:
    """Share of the inner cells at which the surface bends downwards along some direction of the plane."""
    z = record.losses
    middle = z[1:-1, 1:-1]
    across = z[2:, 1:-1] - 2 * middle + z[:-2, 1:-1]
    along = z[1:-1, 2:] - 2 * middle + z[1:-1, :-2]
    mixed = (z[2:, 2:] - z[2:, :-2] - z[:-2, 2:] + z[:-2, :-2]) / 4
    smallest = (across + along) / 2 - np.sqrt(((across - along) / 2) ** 2 + mixed**2)
    return float((smallest < 0).mean())


def on_one_scale(planes: Sequence[Plane]) -> list[figures.Figure]:
    """Surfaces whose heights and colours can be compared."""
    low, high = min(each.losses.min() for each in planes), max(each.losses.max() for each in planes)
    levels = np.geomspace(low * (1 - 1e-6), high * (1 + 1e-6), 17)
    found = []
    for figure in map(figures.surface, planes):
        (panel,) = figure.panels
        found.append(replace(figure, panels=(replace(panel, marks=(replace(panel.marks[0], levels=levels),)),)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--images", type=Path, default=IMAGES)
    options = parser.parse_args()
    started, records = time.perf_counter(), []
    for record in records_of_digits():
        records.append(record)
        print(f"{time.perf_counter() - started:6.1f} s  {record}")
    if options.log:
        with Log(options.log) as log:
            for record in records:
                log.append(record)
    pictures = {
        "atlas": figures.atlas(next(each for each in records if isinstance(each, Atlas))),
        "contours": figures.plane(next(each for each in records if isinstance(each, Plane))),
        "ridgelines": figures.ridgelines([each for each in records if isinstance(each, Line)]),
        "connections": figures.profiles(next(each for each in records if isinstance(each, PathRecord))),
    }
    deeps = {name: [deep(skip=name == "residual", seed=seed) for seed in range(3)] for name in ("plain", "residual")}
    for name, planes in deeps.items():
        for each in planes:
            print(f"{name}: roughness {roughness(each):.3f}, {each.topology()}, {each}")
    for name, figure in zip(deeps, on_one_scale([planes[0] for planes in deeps.values()]), strict=True):
        pictures[name] = replace(figure, title=f"24 layers, {'no skips' if name == 'plain' else 'skips'}")
    for name, figure in pictures.items():
        (options.images / f"landscape-{name}.png").write_bytes(render(figure, format="png", scale=1.25))


if __name__ == "__main__":
    main()
