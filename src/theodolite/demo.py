"""The main job on real data: a ResNet trained on digits at a sound and at a diverging learning rate, surveyed and reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from theodolite.forecasts import Finding, load
from theodolite.forecasts.finding import SEVERITIES
from theodolite.landscapes import plane
from theodolite.measures import spectrum
from theodolite.monitor import Monitor
from theodolite.plans import survey
from theodolite.problem import Problem
from theodolite.records import Plane, Snapshot
from theodolite.records.discard import discard
from theodolite.reports import report


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a projection where the shape changes.

    Args:
        inside: input channels.
        outside: output channels; more than ``inside`` halves the resolution.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = 1 if inside == outside else 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Images in, images out."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


def resnet(classes: int = 10) -> nn.Sequential:
    """A BatchNorm ResNet for 8×8 images of one channel, 77,754 parameters for ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ResidualBlock(16, 16),
        ResidualBlock(16, 32),
        ResidualBlock(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def digits() -> tuple[Float[Tensor, "b 1 8 8"], Int[Tensor, " b"]]:
    """The 1,797 handwritten digits of scikit-learn, scaled to [0, 1], in a fixed shuffled order.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('The demo needs scikit-learn: pip install "theodolite[demo]".') from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0
    return inputs[order], torch.tensor(labels, dtype=torch.int64)[order]


@dataclass(frozen=True)
class Recipe:
    """How one run of the demo trains: SGD with momentum, the learning rate rising linearly to its peak.

    Args:
        name: folder of its run log.
        peak: learning rate at the end of the warm-up.
        warmup: steps of warm-up.
        steps: steps altogether.
    """

    name: str
    peak: float
    warmup: int
    steps: int = 60


RECIPES = (Recipe("stable", peak=0.1, warmup=20), Recipe("diverging", peak=12.0, warmup=60))
BATCH, EVERY = 64, 4
WATCHED, SURVEYED = 128, 256  # samples of the problem that is watched in training, and of the one surveyed at its end
TRAINING = 1437  # of 1,797 digits

Progress = Callable[[str, float], None]


def demonstrate(
    out: str | os.PathLike[str], *, on_progress: Progress | None = None
) -> tuple[Path, tuple[Finding, ...]]:
    """Train both recipes under the monitor, survey the final checkpoints, and write the report.

    Cost: about a minute and a quarter on one core.

    Args:
        out: folder; each recipe's run log goes below it, in place of that of an earlier demo, and ``report.html``.
        on_progress: called with what is being done and the share done so far.

    Returns:
        The path of the page, and the findings of both runs, most severe first.

    Raises:
        LogError: what lies at the place of a run log is none, and is not deleted.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size a second thread costs more in waiting than it brings
    try:
        return _demonstrate(Path(out), on_progress or (lambda what, share: None))
    finally:
        torch.set_num_threads(threads)


def _demonstrate(folder: Path, tell: Progress) -> tuple[Path, tuple[Finding, ...]]:
    for recipe in RECIPES:
        discard(folder / recipe.name)
    findings: list[Finding] = []
    for index, recipe in enumerate(RECIPES):
        base = index / len(RECIPES)

        def within(what: str, share: float, name: str = recipe.name, base: float = base) -> None:
            tell(f"{name}: {what}", base + share / len(RECIPES))

        log = folder / recipe.name
        model = train(recipe, log, within)
        survey_digits(model, recipe, log, within)
        findings += load(log).findings()
    tell("writing the report", 0.98)
    page = report([folder / recipe.name for recipe in RECIPES], folder / "report.html", figures=folder / "figures")
    return page, tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def train(recipe: Recipe, log: Path, tell: Progress) -> nn.Module:
    """Train one recipe, watched by a monitor every few steps."""
    torch.manual_seed(0)
    inputs, targets = digits()
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.peak, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup))
    order = torch.Generator().manual_seed(1)
    with Monitor(digits_problem(model, WATCHED), optimizer, log=log, every=EVERY, budget=None) as monitor:
        for step in range(recipe.steps):
            chosen = torch.randint(TRAINING, (BATCH,), generator=order)
            model.train()
            loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
            monitor.log(loss=loss.detach(), lr=optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tell(f"training, step {step + 1}", 0.5 * (step + 1) / recipe.steps)
    return model


def survey_digits(model: nn.Module, recipe: Recipe, log: Path, tell: Progress) -> None:
    """Survey the final checkpoint: norms, the spectrum with its density and layers, the planes of chance and of the trajectory."""
    snapshots = load(log).select(Snapshot)
    small = digits_problem(model, WATCHED)

    def random_plane(_: Problem) -> Plane:
        """A plane of filter-normalised random directions."""
        return plane(small, points=15)

    def trajectory_plane(_: Problem) -> Plane:
        """The plane through the trajectory's two principal directions."""
        return plane(small, directions="trajectory", trajectory=snapshots, points=15)

    survey(
        digits_problem(model, SURVEYED),
        measures=(
            "gradients",
            partial(spectrum, k=5, which="both", probes=12, steps=60),
            random_plane,
            trajectory_plane,
        ),
        log=log,
        step=recipe.steps,
        on_progress=lambda what, share: tell(f"surveying, {what}", 0.5 + 0.5 * share),
    )


def digits_problem(model: nn.Module, samples: int) -> Problem:
    """The loss on training digits, in batches as large as training's and with BatchNorm as training sees it."""
    inputs, targets = digits()
    batches = list(zip(inputs[:samples].split(BATCH), targets[:samples].split(BATCH), strict=True))
    return Problem(model, nn.CrossEntropyLoss(), batches, mode="train")
