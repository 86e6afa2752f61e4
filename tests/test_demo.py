"""The main job on real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from theodolite.demo import demonstrate, digits, resnet
from theodolite.errors import LogError
from theodolite.forecasts import load
from theodolite.measures import spectrum
from theodolite.problem import Problem
from theodolite.records import Gradients, Log, Plane, Snapshot, Spectrum, Stability


def test_the_network_and_its_data_are_those_of_the_benchmarks() -> None:
    assert sum(parameter.numel() for parameter in resnet().parameters()) == 77_754
    inputs, targets = digits()
    assert inputs.shape == (1797, 1, 8, 8)
    assert targets.bincount().shape == (10,)
    assert torch.equal(digits()[0], inputs)


def test_a_folder_of_something_else_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "diverging").mkdir()
    (tmp_path / "diverging" / "thesis.tex").write_text("precious")
    with Log(tmp_path / "stable") as log:
        log.append(Snapshot(parameters=np.ones(2)))
    with pytest.raises(LogError, match=r"to hold a run log and nothing else before deleting it, found thesis.tex"):
        demonstrate(tmp_path)
    assert (tmp_path / "diverging" / "thesis.tex").read_text() == "precious"


@pytest.mark.slow
def test_the_page_says_when_the_sharpness_crossed_before_the_loss_left_its_range(tmp_path: Path) -> None:
    page, findings = demonstrate(tmp_path)
    worst = findings[0]
    assert (worst.rule, worst.severity) == ("edge of stability", "critical")
    assert worst.step is not None
    left = worst.evidence["loss_left_step"]
    assert isinstance(left, int)
    assert 0 < worst.step < left
    assert all(finding.severity == "info" for finding in findings[1:])
    text = page.read_text()
    assert f"The sharpness crossed the stability bound at step {worst.step}" in text
    for name in ("stable", "diverging"):
        run = load(tmp_path / name)
        for kind in (Stability, Gradients, Spectrum):
            assert run.last(kind) is not None
        assert [plane.name for plane in run.select(Plane)] == ["filter", "trajectory"]
    stable = load(tmp_path / "stable").select(Stability)
    assert stable[-1].loss < 0.2 * stable[0].loss
    # The bound that the diverging run crossed is that of its own learning rate and momentum.
    crossed = next(reading for reading in load(tmp_path / "diverging").select(Stability) if reading.step == worst.step)
    assert crossed.threshold == pytest.approx(2 * 1.9 / crossed.learning_rate)
    assert crossed.sharpness > crossed.threshold


@pytest.mark.slow
def test_top_eigenpairs_of_the_digits_resnet_have_the_residuals_they_claim() -> None:
    torch.manual_seed(0)
    inputs, targets = digits()
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in torch.randint(1437, (30, 128)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    batches = list(zip(inputs[:1024].split(256), targets[:1024].split(256), strict=True))
    problem = Problem(model, nn.CrossEntropyLoss(), batches)
    found = spectrum(problem, k=5, tol=1e-3)
    assert (found.converged == (found.residuals <= 1e-3)).all()
    assert found.converged.all()
    # The same vectors against the Hessian in double precision.
    from theodolite.operators import Hessian

    vectors = torch.from_numpy(np.array(found.eigenvectors)).double()
    products = (Hessian(problem.replace(dtype=torch.float64)) @ vectors.T).T
    values = torch.from_numpy(np.array(found.eigenvalues))
    true = (products - values[:, None] * vectors).norm(dim=1) / values
    assert (true <= 1.5e-3).all()
