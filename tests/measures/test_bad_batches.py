"""Batches that have no samples of their own are refused or marked, whatever the measure of single samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.errors import DataError, OperatorError, ProblemError, TheodoliteError
from theodolite.measures import curved_noise, elements, gap_change, gradients, input_gradients, opposing_signals
from theodolite.problem import Problem
from theodolite.records import Record

MEASURES: dict[str, Callable[[Problem], Record]] = {
    "gradients": lambda problem: gradients(problem, gram=True),
    "elements": elements,
    "opposing": lambda problem: opposing_signals(problem, torch.full((problem.n,), 0.01, dtype=torch.float64)),
    "inputs": input_gradients,
    "gap": gap_change,
    "noise": curved_noise,
}
every_measure = pytest.mark.parametrize("name", MEASURES)


class TimeFirst(nn.Module):
    """A recurrent classifier whose inputs have time in their first dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.head = nn.LSTM(3, 4).double(), nn.Linear(4, 2).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(inputs)[0][-1])


class Turned(TimeFirst):
    """The same with samples first."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.transpose(0, 1))


class Centring(nn.Module):
    """Subtracts the mean over the batch, and no layer says so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 2).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs - inputs.mean(0))


class Means(Centring):
    """Takes every sample as a tensor of its own."""

    def forward(self, *samples: Tensor) -> Tensor:
        return torch.stack([self.head(sample).mean(0) for sample in samples])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@every_measure
@pytest.mark.parametrize("steps", [5, 6])
def test_a_batch_dimension_that_is_not_first_is_refused_or_harmless(name: str, steps: int) -> None:
    """Six samples of five or six steps: gap and noise take losses from the outputs, where samples are first after all."""
    targets, inputs = torch.arange(6) % 2, draw(steps, 6, 3)
    problem = Problem(TimeFirst(), nn.CrossEntropyLoss(), [(inputs, targets)])
    if steps == 5 and name in ("gap", "noise"):
        turned = Problem(Turned(), nn.CrossEntropyLoss(), [(inputs.transpose(0, 1).contiguous(), targets)])
        found, right = (MEASURES[name](each) for each in (problem, turned))
        np.testing.assert_allclose(found.curvatures, right.curvatures, rtol=1e-8)
        return
    with pytest.raises((DataError, OperatorError), match=r"samples first|Expected logits of shape \(1, 2\)"):
        MEASURES[name](problem)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "inputs"])
@pytest.mark.parametrize("steps", [5, 6])
def test_the_same_in_a_loss_function_is_refused(name: str, steps: int) -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    problem = Problem.from_loss(TimeFirst(), loss, [{"x": draw(steps, 6, 3), "y": torch.arange(6) % 2}])
    with pytest.raises(ProblemError, match=r"first dimension of every tensor must count samples|mean over samples"):
        MEASURES[name](problem)


@every_measure
def test_a_model_that_mixes_samples_is_found_out(name: str) -> None:
    problem = Problem(Centring(), nn.CrossEntropyLoss(), [(draw(6, 3), torch.arange(6) % 2)])
    with pytest.raises(OperatorError, match=r"(mixes|couples) samples"):
        MEASURES[name](problem)


@every_measure
def test_a_reduction_that_mixes_samples_is_found_out(name: str) -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.mean(0) - targets).square().mean()

    torch.manual_seed(0)
    problem = Problem(nn.Linear(3, 2).double(), spread, [(draw(6, 3), draw(6, 2))])
    with pytest.raises(ProblemError, match="couples samples"):
        MEASURES[name](problem)


@every_measure
def test_ragged_batches_are_one_batch(name: str) -> None:
    """Seven, two and three samples read as twelve."""
    inputs, targets, sizes = draw(12, 3), torch.arange(12) % 2, [7, 2, 3]
    pieces = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    whole, ragged = (
        MEASURES[name](Problem(network(), nn.CrossEntropyLoss(), batches)) for batches in ([(inputs, targets)], pieces)
    )
    fields = [field for field in ("gram", "gsnr", "changes", "gradients", "squares") if hasattr(whole, field)]
    for field in fields[:1]:
        np.testing.assert_allclose(
            np.array(getattr(ragged, field)), np.array(getattr(whole, field)), rtol=1e-8, atol=1e-13
        )
    assert fields


def test_samples_of_unequal_shape_in_one_batch_are_refused() -> None:
    batch = tuple(draw(2 + length, 3) for length in range(4)), torch.arange(4) % 2
    problem = Problem(Means(), nn.CrossEntropyLoss(), [batch])
    for name in ("gradients", "elements"):
        with pytest.raises(DataError, match="samples first in every tensor"):
            MEASURES[name](problem)


@every_measure
def test_a_sample_with_nan_marks_its_row_and_leaves_the_others(name: str) -> None:
    inputs, targets = draw(8, 3), torch.arange(8) % 2
    broken = inputs.clone()
    broken[2] = torch.nan
    problem, clean = (Problem(network(), nn.CrossEntropyLoss(), [(x, targets)]) for x in (broken, inputs))
    try:
        found = MEASURES[name](problem)
    except TheodoliteError as error:
        assert "finite" in str(error)  # noqa: PT017
        return
    whole, others = MEASURES[name](clean), np.delete(np.arange(8), 2)
    for field in ("sample_norms", "changes", "norms"):
        rows = getattr(found, field, None)
        if isinstance(rows, np.ndarray) and rows.shape == (8,):
            assert np.isnan(rows[2])
            np.testing.assert_allclose(rows[others], getattr(whole, field)[others], rtol=1e-9)
            return
    readings = [getattr(found, field) for field in ("gradient_norms", "squares") if hasattr(found, field)]
    assert readings
    assert all(np.isnan(reading).all() for reading in readings)
