"""Losses: time beside torch and peers, memory of tiled contrast, small experiments on digits and text, and the docs' pages.

python benchmarks/losses.py time | memory | experiments | text | page | pictures
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import loss_pages
import loss_speed
import loss_text
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import losses


def measure_memory(n: int = 65_536, width: int = 64, tile: int = 2048) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, width, generator=generator).requires_grad_() for _ in range(2))
    for name in ("info_nce", "siglip"):
        start = time.perf_counter()
        losses.LOSSES[name].function(u, v, tile=tile).backward()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{name}: n = {n}, value + gradient in {time.perf_counter() - start:.0f} s, peak memory of the process "
            f"{peak / 2**20:.2f} GiB; the matrix alone has {4 * n * n / 2**30:.0f} GiB"
        )


class Digits:
    """Digits, halved into train and test, with labels or counts spoiled on request."""

    def __init__(self, seed: int, *, noise: float = 0.0, imbalance: float = 1.0) -> None:
        data = load_digits()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.target), generator=generator)
        x, y = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
        self.test_x, self.test_y, x, y = x[:897], y[:897], x[897:], y[897:]
        if imbalance > 1:
            kept = [torch.nonzero(y == k)[: max(1, int(80 * imbalance ** (-k / 9)))] for k in range(10)]
            index = torch.cat(kept)[:, 0]
            x, y = x[index], y[index]
        flipped = torch.rand(len(y), generator=generator) < noise
        self.x, self.y = x, torch.where(flipped, torch.randint(10, (len(y),), generator=generator), y)
        self.counts = torch.bincount(self.y, minlength=10).clamp(min=1).float()


def trained(data: Digits, loss: Callable[[Tensor, Tensor, int], Tensor], *, seed: int, steps: int = 600) -> Tensor:
    """Logits on the test half after training a small network with full batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model(data.x), data.y, step).backward()
        optimizer.step()
    with torch.no_grad():
        return model(data.test_x)


def accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


def balanced(logits: Tensor, y: Tensor, classes: range = range(10)) -> float:
    return statistics.mean(float((logits[y == k].argmax(1) == k).double().mean()) for k in classes)


def calibration(logits: Tensor, y: Tensor) -> float:
    return float(losses.expected_calibration_error(torch.softmax(logits, 1), y))


def mean_and_error(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def experiments(seeds: int = 5) -> dict[str, list[str]]:
    """Rows of the how-to page: name, then figures in per cent over seeds."""
    rows: dict[str, list[str]] = {"noise": [], "imbalance": [], "calibration": []}
    robust: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": F.cross_entropy,
        "focal": losses.focal,
        "gce": losses.gce,
        "sce": losses.sce,
        "js": losses.js,
        "mae": losses.mae,
    }
    for name, function in robust.items():
        found = []
        for seed in range(seeds):
            data = Digits(seed, noise=0.5)
            found.append(accuracy(trained(data, lambda z, y, _, f=function: f(z, y), seed=seed), data.test_y))
        rows["noise"].append(f"| `{name}` | {mean_and_error(found)} |")
    for name in ("cross_entropy", "weighted cross_entropy", "focal", "ldam + drw", "vs_loss"):
        whole, rare = [], []
        for seed in range(seeds):
            data = Digits(seed, imbalance=40)
            logits = trained(data, lambda z, y, step, n=name, d=data: unbalanced_loss(n, z, y, step, d), seed=seed)
            whole.append(balanced(logits, data.test_y))
            rare.append(balanced(logits, data.test_y, range(7, 10)))
        rows["imbalance"].append(f"| `{name}` | {mean_and_error(whole)} | {mean_and_error(rare)} |")
    sharp: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": F.cross_entropy,
        "label smoothing 0.1": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        "focal": lambda z, y: losses.focal(z, y, gamma=3.0),
        "dual_focal": losses.dual_focal,
        "squentropy": losses.squentropy,
    }
    for name, function in sharp.items():
        error, right = [], []
        for seed in range(seeds):
            data = Digits(seed, noise=0.2)
            logits = trained(data, lambda z, y, _, f=function: f(z, y), seed=seed)
            noisy = spoiled(data.test_y, 0.2, seed)
            error.append(calibration(logits, noisy))
            right.append(accuracy(logits, data.test_y))
        rows["calibration"].append(f"| `{name}` | {mean_and_error(error)} | {mean_and_error(right)} |")
    return rows


def spoiled(y: Tensor, share: float, seed: int) -> Tensor:
    """Test labels with the noise of the training labels, which calibrated probabilities should foresee."""
    generator = torch.Generator().manual_seed(1000 + seed)
    flipped = torch.rand(len(y), generator=generator) < share
    return torch.where(flipped, torch.randint(10, (len(y),), generator=generator), y)


def unbalanced_loss(name: str, z: Tensor, y: Tensor, step: int, data: Digits) -> Tensor:
    if name == "weighted cross_entropy":
        return F.cross_entropy(z, y, weight=10 / data.counts / (1 / data.counts).sum())
    if name == "ldam + drw":
        weight = losses.drw_weights(data.counts, beta=0.99) if step >= 480 else None
        return losses.ldam(z, y, counts=data.counts, scale=1.0, max_margin=4.0, weight=weight)
    if name == "vs_loss":
        return losses.vs_loss(z, y, counts=data.counts, tau=1.0, gamma=0.0)
    return losses.focal(z, y) if name == "focal" else F.cross_entropy(z, y)


def print_text(seeds: int = 3) -> None:
    for name, (experiment, head) in loss_text.EXPERIMENTS.items():
        print(f"{name}: {experiment.__doc__}\n| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
        for rule, columns in experiment(seeds).items():
            figures = [f"{statistics.mean(c):.3g} ± {statistics.stdev(c) / len(c) ** 0.5:.2g}" for c in columns]
            print(f"| `{rule}` | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task = sys.argv[1] if len(sys.argv) > 1 else "time"
    if task == "time":
        loss_speed.print_all()
    elif task == "memory":
        measure_memory()
    elif task == "page":
        loss_pages.write_catalogue()
    elif task == "pictures":
        loss_pages.draw_pictures()
    elif task == "text":
        print_text()
    elif task == "experiments":
        for part, table in experiments().items():
            print(part, *table, sep="\n")
    else:
        raise SystemExit(f"Expected time, memory, experiments, text, page or pictures. Found {task}.")
