"""Known results of the literature, reproduced on small networks from start to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from theodolite.measures.batch_size import batch_sharpness
from theodolite.measures.classwise import classwise
from theodolite.measures.stability import stability
from theodolite.problem import Problem

pytestmark = pytest.mark.slow


def blobs(samples: int, classes: int, features: int, *, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, features, generator=g)
    labels = torch.randint(classes, (samples,), generator=g)
    return centres[labels] + spread * torch.randn(samples, features, generator=g), labels


def train(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, rate: float, steps: int, batch: int, loss: nn.Module
) -> None:
    optimizer, g = SGD(model.parameters(), lr=rate), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (batch,), generator=g) if batch < len(inputs) else slice(None)
        optimizer.zero_grad()
        loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()


def test_the_sharpness_of_batches_of_a_trained_network_falls_as_one_over_their_size() -> None:
    """Granziol et al. (2022): λ_B = λ + κ/𝔟, so that the largest learning rate grows with the batch and saturates."""
    torch.manual_seed(0)
    inputs, labels = blobs(1024, 4, 10, seed=1, spread=2.5)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 4))
    train(model, inputs, labels, rate=0.1, steps=400, batch=64, loss=nn.CrossEntropyLoss())
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, labels)])
    found = batch_sharpness(problem, sizes=(32, 64, 128, 256, 512), batches=24, tol=1e-2)
    means = np.array([mean.value for mean in found.means])
    errors = np.array([mean.stderr for mean in found.means])
    level, slope = found.law
    fitted = level.value + slope.value / found.effective_sizes
    assert found.converged.all()
    assert (np.diff(means) < 0).all()
    assert slope.value > 5 * slope.stderr
    assert np.sqrt(np.mean(((means - fitted) / errors) ** 2)) < 2.5
    assert abs(level.value - found.whole) < 4 * level.stderr + 0.05 * found.whole
    flat = np.polyfit(found.effective_sizes**-0.5, means, 1)
    worse = np.polyval(flat, found.effective_sizes**-0.5)
    assert np.square((means - fitted) / errors).sum() < np.square((means - worse) / errors).sum()
    assert found.max_learning_rate(1024).value > found.max_learning_rate(32).value


def test_full_batch_gradient_descent_comes_to_the_edge_of_stability() -> None:
    """Cohen et al. (2021): the sharpness rises to 2/η and stays there, whatever η, while the loss falls on."""
    g = torch.Generator().manual_seed(3)
    inputs = torch.randn(32, 6, generator=g, dtype=torch.float64)
    targets = torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
    for rate, steps in ((0.05, 1500), (0.1, 800)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).double()
        problem, optimizer = Problem(model, nn.MSELoss(), [(inputs, targets)]), SGD(model.parameters(), lr=rate)
        ratios, losses = [], []
        for step in range(steps):
            if step % (steps // 50) == 0:
                found = stability(problem, optimizer, tol=1e-3)
                ratios.append(found.ratio)
                losses.append(found.loss)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        assert ratios[0] < 0.5
        assert max(ratios) > 0.97
        arrived = next(index for index, ratio in enumerate(ratios) if ratio > 0.97)
        assert np.median(ratios[arrived:]) == pytest.approx(1.0, abs=0.05)
        assert ratios[-10:] == pytest.approx([1.0] * 10, abs=0.03)
        assert losses[-1] < 0.5 * losses[arrived]


COUNTS = (500, 158, 50, 16, 5)  # imbalance 100


def reweighted(counts: tuple[int, ...]) -> Tensor:
    """Inverse effective numbers of samples with β = 0.9999, their mean 1."""
    effective = 1 - 0.9999 ** torch.tensor(counts, dtype=torch.float64)
    return effective.reciprocal() / effective.reciprocal().mean()


def train_on_a_long_tail(inputs: Tensor, labels: Tensor, *, radius: float, seed: int) -> nn.Module:
    """Momentum, a cosine, reweighting during the last fifth, and gradients at θ + radius·g/‖g‖ (SAM) unless that is 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    optimizer, g = SGD(model.parameters(), lr=0.1, momentum=0.9), torch.Generator().manual_seed(100 + seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2500)
    for step in range(2500):
        rows = torch.randint(len(labels), (64,), generator=g)
        weight = reweighted(COUNTS) if step > 2000 else None
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows], weight=weight).backward()
        if radius:
            slopes = [parameter.grad.clone() for parameter in model.parameters()]
            scale = radius / torch.cat([slope.ravel() for slope in slopes]).norm()
            with torch.no_grad():
                for parameter, slope in zip(model.parameters(), slopes, strict=True):
                    parameter.add_(scale * slope)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows], weight=weight).backward()
            with torch.no_grad():
                for parameter, slope in zip(model.parameters(), slopes, strict=True):
                    parameter.sub_(scale * slope)
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_rare_classes_end_on_deeper_saddles_whose_negative_curvature_sam_takes_away(seed: int) -> None:
    """Rangwani et al. (2022), deferred reweighting. −λₙ/λ₁ is not smaller after SAM, as λ₁ falls as much."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 20, generator=g)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
    inputs = (centres[labels] + 1.5 * torch.randn(len(labels), 20, generator=g)).double()
    plain, sam = (
        classwise(
            Problem(
                train_on_a_long_tail(inputs, labels, radius=radius, seed=seed),
                nn.CrossEntropyLoss(),
                [(inputs, labels)],
            ),
            probes=2,
            tol=1e-2,
        )
        for radius in (0.0, 0.2)
    )
    assert plain.converged.all()
    assert sam.converged.all()
    assert (np.diff(plain.smallest) < 0).all()  # deeper, the rarer the class
    assert plain.saddles[-1] > 1.8 * plain.saddles[:2].max()
    assert plain.smallest[-1] < 3 * sam.smallest[-1] < 0
