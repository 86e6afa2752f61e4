"""A plane through a trained network: theodolite beside the loops of loss-landscapes and Landscaper, in one run.

python benchmarks/landscapes.py                        51 × 51 points, three rounds; the better part of an hour
python benchmarks/landscapes.py --points 13 --rounds 1   a minute
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import io
import json
import platform
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.demo import digits
from theodolite.landscapes import plane
from theodolite.landscapes.directions import random_directions
from theodolite.problem import Problem
from theodolite.records import Plane

Case = tuple[nn.Module, list[tuple[Tensor, Tensor]]]
TOLERANCE, FASTER, LOG_ERROR = 1e-3, 8.0, 0.02
BATCH = 450
FULL, SPLINE, LOOP, LANDSCAPER = "theodolite, every point", "theodolite, interpolate", "loss-landscapes", "Landscaper"
CRITERION = nn.CrossEntropyLoss()


def cnn() -> Case:
    """Three convolutions, 6,138 parameters, all 1,797 digits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return trained(model, *digits(), steps=200)


def deep() -> Case:
    """Sixteen layers in a row without a skip, 512 digits: a surface that explodes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 48), nn.ReLU()]
    for _ in range(14):
        layers += [nn.Linear(48, 48), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    inputs, targets = digits()
    return trained(model, inputs[:512], targets[:512], steps=400)


def trained(model: nn.Module, inputs: Tensor, targets: Tensor, *, steps: int) -> Case:
    """The model after some steps of Adam, and the data in batches."""
    optimizer, order = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(targets), (128,), generator=order)
        optimizer.zero_grad()
        CRITERION(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    return model.eval(), list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))


def ours(interpolate: float | None) -> Callable[[Case, int], Plane]:
    def survey(case: Case, points: int) -> Plane:
        model, batches = case
        return plane(Problem(model, CRITERION, batches), points=points, interpolate=interpolate)

    return survey


def loss_landscapes(case: Case, points: int) -> object:
    """Steps in place from point to point, ``.item()`` at each; the code that Loss Landscape Analysis builds on."""
    library = importlib.import_module("loss_landscapes")
    model, batches = case

    class Metric(importlib.import_module("loss_landscapes.metrics").Metric):  # type: ignore[misc]
        def __call__(self, wrapper: Callable[[Tensor], Tensor]) -> float:
            return mean_loss(lambda inputs: wrapper.forward(inputs), batches)  # type: ignore[attr-defined]

    with torch.no_grad():  # which the library leaves to its user
        return library.random_plane(
            model, Metric(), distance=1, steps=points, normalization="filter", deepcopy_model=True
        )


def landscaper(case: Case, points: int) -> object:
    """Clones the parameters and adds the directions step by step at every point."""
    compute = importlib.import_module("landscaper.compute")
    model, batches = case
    model = copy.deepcopy(model)
    problem = Problem(model, CRITERION, batches)
    directions = [list(problem.layout.unflatten(axis)) for axis in random_directions(problem, seed=0, how="filter")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return compute.compute_loss_landscape(
            model,
            batches,
            directions,
            lambda model, batches: mean_loss(model, batches),
            steps=points,
            distance=1,
            dim=2,
            device="cpu",
        )


def mean_loss(model: Callable[[Tensor], Tensor], batches: list[tuple[Tensor, Tensor]]) -> float:
    total = sum(CRITERION(model(inputs), targets).item() * len(targets) for inputs, targets in batches)
    return total / sum(len(targets) for _, targets in batches)


CONTENDERS: dict[str, tuple[str | None, Callable[[Case, int], object]]] = {
    FULL: (None, ours(None)),
    SPLINE: (None, ours(TOLERANCE)),
    LOOP: ("loss_landscapes", loss_landscapes),
    LANDSCAPER: ("landscaper", landscaper),
}


def main() -> None:
    """Draw the planes in turn, keep times and losses as they are taken, and hold splines against every cell of the truth."""
    options = parse()
    torch.set_num_threads(1)
    without_its_package("landscaper")
    state = State(Path(options.keep))
    cases = {"CNN": cnn(), "deep": deep()}
    loops = options.loop_points or options.points
    for taken in range(options.rounds):
        for name, (module, survey) in CONTENDERS.items():
            if module is None or importlib.util.find_spec(module) is not None:
                size = options.points if name == SPLINE else loops
                factor = (options.points / size) ** 2
                state.take("CNN", name, taken, lambda survey=survey, size=size: survey(cases["CNN"], size), factor)
    for case in ("CNN", "deep"):
        for name in (FULL, SPLINE):
            state.take(f"{case}, errors", name, 0, lambda c=case, n=name: CONTENDERS[n][1](cases[c], options.points))
    lines = [
        setting(cases["CNN"], options.points, loops),
        "",
        *table(state.times("CNN")),
        "",
        *verdicts(state, options.points),
    ]
    print("\n".join(lines))
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n")


class State:
    """Times and planes taken so far, in a file: a run that was interrupted goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, dict[str, dict[str, list[float]]]] = json.loads(path.read_text()) if path.exists() else {}

    def times(self, case: str) -> dict[str, list[float]]:
        return {name: kept["seconds"] for name, kept in self._kept[case].items()}

    def plane(self, case: str, name: str) -> dict[str, list[float]]:
        return self._kept[case][name]

    def take(self, case: str, name: str, taken: int, draw: Callable[[], object], factor: float = 1.0) -> None:
        """Time one drawing, unless there are as many already; ``factor`` times what a part of its points takes."""
        kept = self._kept.setdefault(case, {}).setdefault(name, {"seconds": []})
        if len(kept["seconds"]) > taken:
            return
        begin = time.process_time()
        found = draw()
        kept["seconds"].append(factor * (time.process_time() - begin))
        if isinstance(found, Plane):
            count = found.losses.size if found.evaluated is None else int(found.evaluated.sum())
            kept |= {"losses": found.losses.ravel().tolist(), "evaluated": [count], "said": [found.interpolation_error]}
        self._path.write_text(json.dumps(self._kept))
        print(f"{case}, {name}: {kept['seconds'][-1]:.1f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=51, help="positions on each axis")
    parser.add_argument("--loop-points", type=int, help="time those that read every point on so many a side, and scale")
    parser.add_argument("--rounds", type=int, default=3, help="times every contender draws the plane")
    parser.add_argument("--keep", default="landscapes.json", help="times taken so far; run again to go on")
    parser.add_argument("--out", help="write what is printed to this .md")
    return parser.parse_args()


def without_its_package(name: str) -> None:
    """Let modules of a package be imported alone: Landscaper's own imports compiled topology, which no plane needs."""
    found = importlib.util.find_spec(name)
    if found is not None and found.submodule_search_locations:
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = list(found.submodule_search_locations), found
        sys.modules[name] = package


def setting(case: Case, points: int, loops: int) -> str:
    model, batches = case
    versions = []
    for package in ("torch", "theodolite", "loss-landscapes", "landscaper"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    n, samples = sum(part.numel() for part in model.parameters()), sum(len(targets) for _, targets in batches)
    scaled = "" if loops == points else f", those that read every point timed on {loops} × {loops} and scaled"
    return (
        f"{platform.machine()} CPU, float32, one thread, CPU seconds; CNN of {n:,} parameters, {samples:,} digits, "
        f"{points} × {points} points{scaled}; {', '.join(versions)}."
    )


def table(times: dict[str, list[float]]) -> list[str]:
    fastest = median(times[SPLINE])
    lines = [
        "| plane | seconds, median | lowest to highest | theodolite's interpolated one is faster |",
        "| --- | --: | --: | --: |",
    ]
    for name, taken in times.items():
        ratio = "" if name == SPLINE else f"×{median(taken) / fastest:.1f}"
        lines.append(f"| {name} | {median(taken):.1f} | {min(taken):.1f} to {max(taken):.1f} | {ratio} |")
    return lines


def verdicts(state: State, points: int) -> list[str]:
    """Errors over all cells, not over those held out, and whether the targets are met."""
    times = state.times("CNN")
    fastest = min((median(times[name]) for name in (LOOP, LANDSCAPER) if name in times), default=float("nan"))
    ratio = fastest / median(times[SPLINE])
    (count,), (said,) = (state.plane("CNN, errors", SPLINE)[key] for key in ("evaluated", "said"))
    error, log_error = errors(state, "CNN, errors")
    smooth = (
        f"CNN: {count:,} of {points**2:,} points evaluated; error on cells held out {said:.2e} of the range, over all cells "
        f"{error:.2e}, of the logarithms {log_error:.2e}. At least {FASTER:g} times faster than the fastest loop at an error of at "
        f"most {TOLERANCE:g} on cells held out: {met(ratio >= FASTER and said <= TOLERANCE)} ({ratio:.1f})."
    )
    (count,) = state.plane("deep, errors", SPLINE)["evaluated"]
    losses = state.plane("deep, errors", FULL)["losses"]
    error, log_error = errors(state, "deep, errors")
    coarse = (2 * min(8, points // 2) + 1) ** 2
    rugged = (
        f"Sixteen layers without skips: losses from {min(losses):.2g} to {max(losses):.2g}; {count:,} of {points**2:,} points "
        f"evaluated; error over all cells {error:.2e} of the range, {log_error:.2e} of that of the logarithms. Refused the plane "
        f"of {coarse:,} points and kept to {LOG_ERROR:g}: {met(count > 2 * coarse and log_error <= LOG_ERROR)}."
    )
    return [smooth, "", rugged]


def errors(state: State, case: str) -> tuple[float, float]:
    """The largest error of the interpolated plane as a share of the range, of losses and of logarithms."""
    said, truth = (np.array(state.plane(case, name)["losses"]) for name in (SPLINE, FULL))
    logs = np.log(said) - np.log(truth)
    return float(np.abs(said - truth).max() / np.ptp(truth)), float(np.abs(logs).max() / np.ptp(np.log(truth)))


def met(yes: bool) -> str:
    return "met" if yes else "MISSED"


if __name__ == "__main__":
    main()
