"""Losses: time beside torch, memory of tiled contrast, small experiments on digits, and the pages made from them.

python benchmarks/losses.py time | memory | experiments | page
"""

from __future__ import annotations

import inspect
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import losses

PAGES = Path(__file__).parents[1] / "docs" / "losses"
COUNTS = torch.arange(1000, 0, -1).float()
Timed = Callable[[], Tensor]


def value_and_gradient(function: Callable[..., Tensor], *inputs: Tensor, **options: object) -> Timed:
    leaf = inputs[0].clone().requires_grad_()

    def run() -> Tensor:
        return torch.autograd.grad(function(leaf, *inputs[1:], **options), leaf)[0]

    return run


def ratio(ours: Timed, theirs: Timed, rounds: int = 15) -> tuple[float, float, float]:
    """Median milliseconds of both and their ratio, measured in turn."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for run, times in zip((ours, theirs), spent, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    a, b = (1e3 * statistics.median(times[2:]) for times in spent)
    return a, b, a / b


def measure_time() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2048, 1000, generator=generator)
    y = torch.randint(1000, (2048,), generator=generator)
    reference = value_and_gradient(F.cross_entropy, z, y)
    print("value + gradient, logits (2048, 1000), one thread: ms, cross_entropy ms, ratio")
    for entry in losses.LOSSES.values():
        if entry.kind == "classes":
            needs = {"counts": COUNTS} if "counts" in inspect.signature(entry.function).parameters else {}
            a, b, r = ratio(value_and_gradient(entry.function, z, y, **needs), reference)
            print(f"{entry.name:26s} {a:8.2f} {b:8.2f} {r:6.2f}")
    print("beside torch's own function of the same value")
    bits = (torch.rand(2048, 1000, generator=generator) > 0.5).float()
    teacher = torch.randn(2048, 1000, generator=generator)
    flat, other = z.flatten(), teacher.flatten()
    same: dict[str, tuple[Timed, Timed]] = {
        "poly(0) / cross_entropy": (value_and_gradient(losses.poly, z, y, coefficients=()), reference),
        "ldr_kl(1, 0) / cross_entropy": (value_and_gradient(losses.ldr_kl, z, y), reference),
        "macro_auc_univariate / bce": (
            value_and_gradient(losses.macro_auc_univariate, z, bits, reweighted=False),
            value_and_gradient(F.binary_cross_entropy_with_logits, z, bits),
        ),
        "quantile(0.5) / l1_loss": (
            value_and_gradient(losses.quantile, flat, other),
            value_and_gradient(F.l1_loss, flat, other),
        ),
        "kd / kl_div": (
            value_and_gradient(losses.kd, z, teacher, temperature=1.0),
            value_and_gradient(
                lambda s, t: F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), log_target=True, reduction="batchmean"),
                z,
                teacher,
            ),
        ),
        "info_nce / cross_entropy of cosines": (
            value_and_gradient(losses.info_nce, z[:, :64], teacher[:, :64], symmetric=False),
            value_and_gradient(_plain_info_nce, z[:, :64], teacher[:, :64]),
        ),
    }
    for name, pair in same.items():
        a, b, r = ratio(*pair)
        print(f"{name:38s} {a:8.2f} {b:8.2f} {r:6.2f}")
    print("output-Hessian product by closed form beside double backward")
    v = torch.randn(2048, 1000, generator=generator)
    for name in ("focal", "squentropy", "gce", "sparsemax_loss", "aux_log_z2", "dco"):
        entry = losses.LOSSES[name]
        a, b, r = ratio(lambda entry=entry: entry.hessian(z, y) @ v, double_backward(entry.function, z, y, v))
        print(f"{name:26s} {a:8.2f} {b:8.2f} {r:6.2f}")


def _plain_info_nce(u: Tensor, v: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(u, dim=1) @ F.normalize(v, dim=1).T / 0.1, torch.arange(len(u)))


def double_backward(function: Callable[..., Tensor], z: Tensor, y: Tensor, v: Tensor) -> Timed:
    def run() -> Tensor:
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, y, reduction="sum"), leaf, create_graph=True)
        return torch.autograd.grad(gradient, leaf, v)[0]

    return run


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


def write_pages() -> None:
    """Regenerate the catalogue with its cards."""
    rows = []
    for entry in losses.LOSSES.values():
        doc = inspect.getdoc(entry.function) or ""
        paper = " ".join(doc.split("References:")[1].split()).rstrip(".")
        closed = "gradient, Hessian" if entry.hessian else "gradient" if entry.gradient else ""
        rows.append((entry.family, entry.name, entry.kind, doc.splitlines()[0].replace("|", "\\|"), closed, paper))
    lines = [
        "# Catalogue and cards",
        "",
        "Made by `python benchmarks/losses.py page`. Inputs by kind: *classes* logits and class indices, *labels* logits and",
        "0/1 labels, *values* predictions and targets, *masks* probabilities and soft masks, *pairs* log-probabilities of",
        "answers, *views* two embeddings, *embeddings* embeddings and class indices, *other* as its docstring says.",
        "",
        "| family | loss | kind | what it is | closed forms | paper |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {f} | `{n}` | {k} | {d} | {c} | {p} |" for f, n, k, d, c, p in sorted(rows)),
        "",
        "# Cards",
        "",
        "Measured at 4 classes, default options; every column is a numerical test (`theodolite.losses.card`).",
        "",
        losses.card_table([losses.card(F.cross_entropy), *(losses.card(f, name=f.__name__) for f in carded())]),
        "",
    ]
    (PAGES / "catalogue.md").write_text("\n".join(lines))


def carded() -> list[Callable[..., Tensor]]:
    """The losses whose only inputs are logits and classes."""
    fit = [e for e in losses.LOSSES.values() if e.kind == "classes"]
    # a loss with detached weights has a gradient that is not its value's: its card would mix two functions
    left_out = {"counts", "detach_weight"}
    return [e.function for e in fit if not left_out & set(inspect.signature(e.function).parameters)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    task = sys.argv[1] if len(sys.argv) > 1 else "time"
    if task == "time":
        measure_time()
    elif task == "memory":
        measure_memory()
    elif task == "page":
        write_pages()
    elif task == "experiments":
        for part, table in experiments().items():
            print(part, *table, sep="\n")
    else:
        raise SystemExit(f"Expected time, memory, experiments or page. Found {task}.")
