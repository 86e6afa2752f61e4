"""Phase metrics: copies of one run, quadratics with known barriers, every corner of the taxonomy, and what errors allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import ProblemError
from theodolite.landscapes.paths import path
from theodolite.landscapes.phase_metrics import phase_metrics
from theodolite.problem import Problem
from theodolite.records import PhaseMetrics
from theodolite.records.phase import phases


def metrics(loss: float, connectivity: float, similarity: float, *, error: float = 0.0) -> PhaseMetrics:
    one = np.ones(1)
    return PhaseMetrics(
        names=("a", "b"),
        losses=np.full(2, loss),
        loss_stderrs=np.full(2, error),
        test_losses=np.full(2, 2 * loss),
        sharpness=np.full(2, np.nan),
        first=("a",),
        second=("b",),
        connectivities=connectivity * one,
        connectivity_stderrs=error * one,
        similarities=similarity * one,
        similarity_stderrs=error * one,
        distances=one,
        initial=2.0,
        curve="bezier",
    )


def test_every_phase_lies_in_its_corner() -> None:
    corners = {
        "I": (0.5, -0.1, 0.2),
        "II": (0.5, 0.1, 0.9),
        "III": (0.1, -0.1, 0.2),
        "IV-A": (0.1, 0.01, 0.2),
        "IV-B": (0.1, -0.01, 0.9),
    }
    for name, corner in corners.items():
        found = metrics(*corner).phase(similarity=0.5)
        assert (found.name, found.candidates) == (name, (name,))
        assert (found.loss, found.connectivity, found.similarity) == (0.2, -0.02, 0.5)
    assert metrics(0.1, 0.0, 0.9).phase().name == "IV"
    assert metrics(0.5, -0.1, 0.2).phase(loss=0.3).name == "III"
    assert metrics(0.5, -0.1, 0.2).phase(connectivity=0.06).name == "II"
    assert metrics(float("nan"), -0.1, 0.2).phase().name == "unknown"
    assert metrics(0.5, -0.1, 0.2).gap == 0.5
    median = [each.name for each in phases([metrics(0.1, 0.0, value) for value in (0.2, 0.6, 0.9)])]
    assert median == ["IV-A", "IV-B", "IV-B"]


def test_errors_allow_other_phases_and_the_text_says_so() -> None:
    found = metrics(0.19, -0.1, 0.2, error=0.02).phase(similarity=0.5)
    assert (found.name, found.candidates) == ("III", ("I", "III"))
    assert "phase III (small loss, ends not connected; within errors also I; loss above 0.2 is large" in str(found)


def test_copies_of_one_run_are_connected_and_alike() -> None:
    problem = BY_NAME["mlp"].problem()
    found = phase_metrics(problem, {"a": problem.model, "b": problem.model}, curve="linear", initial=100.0)
    assert found.connectivity.value == pytest.approx(0.0, abs=1e-12)
    assert found.similarity.value == pytest.approx(1.0)
    assert found.distances.tolist() == [0.0]
    assert found.phase(similarity=0.5).name == "IV-B"
    assert found.loss.value == problem.loss()
    assert "λ_max" in repr(found)


def test_barriers_distances_and_sharpness_are_those_of_a_quadratic() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 3, generator=g).double(), torch.randn(6, 1, generator=g).double()) for _ in range(4)]
    model = nn.Linear(3, 1, bias=False).double()
    problem = Problem(model, nn.MSELoss(), batches)
    first, last = torch.tensor([[3.0, 0.0, 1.0]]).double(), torch.tensor([[-1.0, 2.0, 0.0]]).double()
    ends = {"a": {"weight": first}, "b": {"weight": last}}
    found = phase_metrics(problem, ends, curve="linear", initial=500.0, test=Problem(model, nn.MSELoss(), batches[:1]))
    inputs = torch.cat([x for x, _ in batches])
    hessian = 2 * inputs.T @ inputs / len(inputs)
    assert found.sharpness == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=0.02)
    assert found.distances[0] == pytest.approx(float((first - last).norm()))
    line = path(problem, ends["a"], ends["b"], points=11)
    assert found.connectivity.value == line.connectivity().value > 0
    assert found.connectivity.stderr == line.connectivity().stderr
    assert found.phase().name == "IV"
    assert np.isfinite(found.gap)
    bent = phase_metrics(problem, ends, steps=20, sharpness=False)
    assert (bent.curve, np.isnan(bent.sharpness).all()) == ("bezier", True)
    assert any("fresh initialisations" in note for note in bent.notes)
    assert bent.initial > 0


def test_mistakes_are_told() -> None:
    problem = BY_NAME["mlp"].problem()
    with pytest.raises(ProblemError, match=r"at least 2 checkpoints .* found 1 and 'bezier'"):
        phase_metrics(problem, {"a": problem.model})
