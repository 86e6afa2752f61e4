"""Bands from a sample of the data cover what all of it gives, cell by cell, on a network with heavy-tailed losses."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.demo import digits
from theodolite.landscapes.directions import named_pair
from theodolite.landscapes.reading import Reading, additive
from theodolite.landscapes.readings import stderrs
from theodolite.problem import Problem
from theodolite.records import Plane

AXIS = np.linspace(-1, 1, 5)


@functools.cache
def losses_of_samples() -> np.ndarray:
    """Losses of all 1,797 digits at 5 × 5 cells around a trained network, of shape (5, 5, samples)."""
    torch.manual_seed(0)
    inputs, targets = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        chosen = slice(128 * (step % 8), 128 * (step % 8 + 1))  # the others are test data
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
    first, second = named_pair(problem, "filter", seed=0).vectors
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    found = np.empty((5, 5, len(targets)))
    with torch.no_grad():
        for i, j in np.ndindex(5, 5):
            torch.nn.utils.vector_to_parameters(theta + AXIS[i] * first + AXIS[j] * second, model.parameters())
            found[i, j] = F.cross_entropy(model(inputs), targets, reduction="none").double()
    return found


def surveyed(losses: np.ndarray, chunks: int) -> Plane:
    """A plane as a survey of these samples would record it."""
    parts = np.array_split(np.arange(losses.shape[2]), chunks)
    weights = np.array([float(part.size) for part in parts])

    def reading(i: int, j: int) -> Reading:
        return additive(np.array([losses[i, j, part].sum() for part in parts]), weights)

    readings = [reading(i, j) for i, j in np.ndindex(5, 5)]
    return Plane(
        alphas=AXIS,
        betas=AXIS,
        losses=np.array([each.loss for each in readings]).reshape(5, 5),
        stderrs=stderrs(readings, center=readings[12]).reshape(5, 5),
        direction_norms=(1.0, 1.0),
        cosine=0.0,
        name="filter",
        parameter_norm=1.0,
        context={"chunks": chunks},
    )


@pytest.mark.parametrize("chunks", [4, 16])
def test_bands_of_512_samples_cover_the_loss_of_all_data(chunks: int) -> None:
    losses = losses_of_samples()
    truth = losses.mean(2) - losses[2, 2].mean()
    generator, covered = np.random.default_rng(chunks), []
    for _ in range(150):
        # With replacement: drawn without, a third of the data would be known better than its size says.
        low, high = surveyed(losses[:, :, generator.integers(losses.shape[2], size=512)], chunks).band(0.95)
        covered.append((low <= truth) & (truth <= high))
    share = np.delete(np.mean(covered, axis=0), 12)  # the centre is exact
    assert share.mean() >= 0.93
    assert share.min() >= 0.88  # 150 draws: 1.8 % is one standard error
    assert share.mean() <= 0.975


def test_bands_are_of_rises_on_the_same_samples() -> None:
    """Without pairing, the sample's own luck at the centre would stand in every cell, also in those next to it."""
    losses = losses_of_samples()
    plane = surveyed(losses[:, :, :512], 8)
    low, high = plane.band(0.95)
    assert low[2, 2] == high[2, 2] == 0
    alone = losses[1, 2, :512].std() / np.sqrt(512)
    paired = (losses[1, 2, :512] - losses[2, 2, :512]).std() / np.sqrt(512)
    assert paired < alone
    assert plane.stderrs[1, 2] == pytest.approx(paired, rel=0.5)
    wide = plane.band(0.99)
    assert (wide[1] >= high).all()
