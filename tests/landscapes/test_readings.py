"""Errors from the data against brute force, readings that are not finite, and a model that nobody touched."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME, FAMILIES, Family, features, labels
from theodolite.errors import NonFiniteError
from theodolite.landscapes import line, plane
from theodolite.landscapes.readings import Reading, read, stderrs
from theodolite.problem import Problem
from theodolite.records import differences

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def moved(problem: Problem, scale: float) -> Problem:
    """A problem with its parameters elsewhere."""
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return problem


def brute_force(family: Family, scale: float) -> float:
    """The delete-m jackknife as published, every leave-one-out loss from a problem without that batch."""

    def rise(batches: list[object]) -> float:
        torch.manual_seed(11)
        here = family.problem_of(family.model_and_data()[0], batches)
        center = here.loss()
        torch.manual_seed(11)
        return moved(here, scale).loss() - center

    batches = family.batches()
    problem = family.problem()
    weights = problem.totals()[1].numpy()
    sums = not problem.objective.averages()
    whole = rise(batches)
    left_out = []
    for index in range(len(batches)):
        found = rise(batches[:index] + batches[index + 1 :])
        left_out.append(found * weights.sum() / (weights.sum() - weights[index]) if sums else found)
    h = weights.sum() / weights
    jackknife = len(h) * whole - ((1 - 1 / h) * left_out).sum()
    pseudo = h * whole - (h - 1) * np.array(left_out)
    return math.sqrt(((pseudo - jackknife) ** 2 / (h - 1)).mean())


@families
def test_stderr_is_the_jackknife_by_brute_force(family: Family) -> None:
    problem = family.problem()
    center = read(problem, problem.point())
    torch.manual_seed(11)
    there = read(problem, moved(problem, 0.3).point())
    (found,) = stderrs([there], center=center)
    assert found == pytest.approx(brute_force(family, 0.3), rel=1e-9)
    assert found > 0


def test_equal_chunks_give_the_textbook_jackknife() -> None:
    data = list(zip(features((6,) * 8, 5), labels((6,) * 8, 3), strict=True))
    family = BY_NAME["mlp"]
    problem = family.problem_of(family.model_and_data()[0], data)
    found = line(problem, points=3)
    assert found.direction is not None
    rises = np.empty((8, 3))
    for index in range(8):
        rest = family.problem_of(problem.model, data[:index] + data[index + 1 :])
        other = line(rest, direction=found.direction, points=3)
        rises[index] = other.losses - other.center
    expected = np.sqrt(7 / 8 * ((rises - rises.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(found.stderrs, expected, rtol=1e-9, atol=1e-15)


def test_the_variance_is_unbiased_for_ragged_chunks() -> None:
    """Independent samples in chunks of unequal size: the mean of stderr² is the variance of the rise, within 4 errors.

    Leaving one chunk out without regard to its weight overestimates the variance by 30 % on these sizes.
    """
    sizes, repeats = np.array([50, 50, 2]), 4000
    g = np.random.default_rng(0)
    ends = np.cumsum(sizes)[:-1]
    squares, rises, naive = [], [], []
    for _ in range(repeats):
        samples = g.standard_normal((2, sizes.sum()))
        center, there = (
            Reading(
                part.mean(),
                np.array([piece.sum() for piece in np.split(part, ends)]),
                sizes.astype(float),
                float(part.size),
            )
            for part in samples
        )
        (stderr,) = stderrs([there], center=center)
        squares.append(stderr**2)
        rises.append(there.loss - center.loss)
        totals = there.totals - center.totals
        left_out = (totals.sum() - totals) / (sizes.sum() - sizes)
        naive.append(2 * np.var(left_out))
    spread = math.sqrt(np.var(squares) / repeats + np.var(rises) ** 2 * 2 / repeats)
    assert abs(np.mean(squares) - np.var(rises)) < 4 * spread
    assert np.mean(naive) > 1.2 * np.mean(squares)


def test_an_ignored_chunk_adds_no_error() -> None:
    family = BY_NAME["mlp"]
    data = family.batches()
    inputs, targets = data[0]
    problem = family.problem_of(family.model_and_data()[0], data)
    padded = family.problem_of(problem.model, [*data, (inputs, torch.full_like(targets, -100))])
    a, b = line(problem, points=3), line(padded, points=3)
    np.testing.assert_array_equal(a.losses, b.losses)
    np.testing.assert_allclose(a.stderrs, b.stderrs, rtol=1e-12)


def test_a_single_chunk_has_no_error_and_says_so() -> None:
    family = BY_NAME["mlp"]
    problem = family.problem_of(family.model_and_data()[0], family.batches()[:1])
    found = plane(problem, points=3)
    assert np.isnan(found.stderrs).all()
    assert any("single chunk" in note for note in found.notes)


@pytest.mark.parametrize("place", [0, 2])
def test_a_sample_that_is_not_finite_is_told_by_its_chunk(place: int) -> None:
    family = BY_NAME["mlp"]
    data = [(inputs.clone(), targets) for inputs, targets in family.batches()]
    data[place][0][0] = math.nan
    found = line(family.problem_of(family.model_and_data()[0], data), points=3)
    (note,) = (note for note in found.notes if "at the centre" in note)
    expected = (
        "the first chunk of the data, and read no further" if not place else f"1 chunk of {len(data)} of the data, 3"
    )
    assert f"the loss at the centre is nan: not finite on {expected}" in note
    assert not any("single chunk" in note for note in found.notes)
    assert "chunks" not in found.context if not place else found.context["chunks"] == len(data)


class Cliff(nn.Module):
    """NaN beyond w = 0.5, infinite below w = −0.5."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start, 0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        first = self.w[0]
        return (x * self.w.sum()).square() + torch.where(first > 0.5, math.nan, torch.where(first < -0.5, math.inf, 0))


def cliff(start: float = 0.0) -> Problem:
    return Problem.from_loss(Cliff(start), lambda model, x: model(x).mean(), features((4, 4)))


def test_cells_that_are_not_finite_are_readings_and_counted() -> None:
    found = plane(cliff(), directions=(np.array([1.0, 0]), np.array([0, 1.0])), points=5)
    assert np.isinf(found.losses[0]).all()
    assert np.isnan(found.losses[4]).all()
    assert found.finite[1:4].all()
    assert any("10 of 25 losses are not finite" in note for note in found.notes)
    np.testing.assert_array_equal(np.isfinite(found.stderrs), found.finite)


def test_a_centre_that_is_not_finite_is_a_reading() -> None:
    found = line(cliff(0.75), direction=np.array([1.0, 0]), points=3, span=(-0.5, 0))
    assert np.isfinite(found.losses[0])
    assert np.isnan(found.center)
    assert np.isnan(found.stderrs).all()
    assert any("the loss at the centre is nan" in note for note in found.notes)


def scene(model: nn.Module) -> dict[str, object]:
    """Everything that a survey could disturb."""
    tensors = dict(model.state_dict(keep_vars=True))
    return {
        "values": {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()},
        "versions": {name: tensor._version for name, tensor in tensors.items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        "grad objects": [id(parameter.grad) for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the state that a survey must not move
    }


def disturbed(before: dict[str, object], model: nn.Module) -> list[str]:
    """Names of what changed."""
    after = scene(model)
    return [name for name in before if pickle.dumps(before[name]) != pickle.dumps(after[name])]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: the type checker of the tests draws from Python's generator to sample long tuples."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Noisy(nn.Module):
    """BatchNorm, dropout, a frozen weight and gradients that somebody still needs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
        ).double()
        self.net[0].bias.requires_grad_(False)
        self.net[4].eval()
        self.net[4].weight.grad = torch.ones(3, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


SURVEYS: list[Callable[[Problem], object]] = [
    lambda problem: line(problem, points=5),
    lambda problem: plane(problem, points=3),
    lambda problem: plane(problem, points=3, directions="gaussian"),
    lambda problem: line(problem, points=3, batchnorm="recalibrated", groups="targets", scalars=("gradient norm",)),
    lambda problem: (
        plane(problem, points=3, quadratic=True, eigenvalues=2, batchnorm="stored")
        if problem.mode == "eval"
        else line(problem, points=3, batchnorm="batch", cap=1.0)
    ),
]


@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
@pytest.mark.parametrize("survey", SURVEYS)
@pytest.mark.usefixtures("unchecked")
def test_the_model_is_untouched(mode: str, survey: Callable[[Problem], object]) -> None:
    model = Noisy()
    problem = Problem(
        model, nn.CrossEntropyLoss(), list(zip(features((6, 5), 5), labels((6, 5), 3), strict=True)), mode=mode
    )
    before = scene(model)
    survey(problem)
    found = disturbed(before, model)
    assert not found


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.usefixtures("unchecked")
def test_the_model_is_untouched_when_the_loss_raises_midway(error: type[BaseException]) -> None:
    model, calls = Noisy(), 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        torch.rand(3)
        if calls > 12:
            raise error("midway")
        return F.cross_entropy(model(batch[0]), batch[1])

    problem = Problem.from_loss(
        model, loss, list(zip(features((6, 5), 5), labels((6, 5), 3), strict=True)), mode="train"
    )
    before = scene(model)
    with pytest.raises(error, match="midway"):
        plane(problem, points=5)
    assert calls == 13
    found = disturbed(before, model)
    assert not found


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["convnet", "transformer"])
def test_the_same_problem_and_seed_give_the_same_record(name: str, mode: str) -> None:
    problem = BY_NAME[name].problem(mode=mode)
    first = plane(problem, points=4, seed=2)
    torch.rand(5)
    again = plane(BY_NAME[name].problem(mode=mode), points=4, seed=2)
    assert not differences(first.replace(cost=again.cost), again)
    assert first.cost.forwards == again.cost.forwards == 16
    other = plane(problem, points=4, seed=3)
    assert np.abs(other.losses - first.losses).max() > 1e-3


@families
def test_every_cell_equals_a_model_that_was_moved_there(family: Family) -> None:
    found = plane(family.problem(), points=3, directions="gaussian", span=(-0.1, 0.1))
    assert found.directions is not None
    for i, j in ((0, 0), (2, 1)):
        live = family.problem()
        shift = found.alphas[i] * found.directions[0] + found.betas[j] * found.directions[1]
        with torch.no_grad():
            named = dict(live.model.named_parameters())
            for name, part in zip(live.layout.names, live.layout.unflatten(torch.from_numpy(shift)), strict=True):
                named[name].add_(part)
        assert found.losses[i, j] == pytest.approx(live.loss(), rel=1e-12)


def test_context_says_what_errors_and_statistics_rest_on() -> None:
    stored = line(BY_NAME["convnet"].problem(), points=3)
    batch = line(BY_NAME["convnet"].problem(mode="train"), points=3)
    assert stored.context["batchnorm"] == "stored statistics"
    assert batch.context["batchnorm"] == "batch statistics"
    assert stored.context["chunks"] == 3
    assert stored.context["one_dimensional"] == "zero"
    assert stored.seed == 0
    assert stored.cost.seconds > 0


def test_regression_targets_stay_what_they_are() -> None:
    """Targets cast to integers would say 0 where the loss is 0.0625."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    targets = [torch.full((4, 1), 0.25, dtype=torch.float64) for _ in range(2)]
    problem = Problem(model, nn.MSELoss(), list(zip(features((4, 4), 2), targets, strict=True)))
    assert line(problem, direction=np.array([1.0, 0.0]), points=3).center == 0.0625


def test_directions_are_kept_while_they_fit() -> None:
    problem = BY_NAME["mlp"].problem()
    size = 2 * 8 * problem.n
    fits = plane(problem, points=3, keep_directions_below=size)
    assert fits.directions is not None
    assert not fits.notes
    over = plane(problem, points=3, keep_directions_below=size - 1)
    assert over.directions is None
    assert any(f"{size:,} bytes, more than keep_directions_below={size - 1:,}" in note for note in over.notes)
    assert not differences(over.replace(directions=fits.directions, notes=(), cost=fits.cost), fits)
    assert line(problem, points=3, keep_directions_below=size // 2 - 1).direction is None


def test_on_point_counts_every_point_and_may_draw_random_numbers() -> None:
    problem, seen = BY_NAME["mlp"].problem(), []
    state = torch.get_rng_state()

    def on_point(done: int, points: int) -> None:
        seen.append((done, points))
        torch.rand(1)

    plane(problem, points=(3, 4), on_point=on_point)
    assert seen == [(index, 12) for index in range(1, 13)]
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    for _ in range(12):
        torch.rand(1)
    assert torch.equal(drawn, torch.get_rng_state())


def test_half_precision_models_give_single_precision_directions() -> None:
    model = nn.Linear(5, 3).to(torch.bfloat16)
    batches = [(x.to(torch.bfloat16), y) for x, y in zip(features((6, 5), 5), labels((6, 5), 3), strict=True)]
    found = line(Problem(model, nn.CrossEntropyLoss(), batches), points=3)
    assert found.direction is not None
    assert found.direction.dtype == np.float32
    assert found.finite.all()


def test_an_infinite_parameter_is_refused_before_anything_is_evaluated() -> None:
    problem = cliff(math.nan)
    with pytest.raises(NonFiniteError, match="found 1 of 2 NaN or infinite"):
        line(problem)


def test_the_step_is_kept_in_the_record() -> None:
    problem = BY_NAME["mlp"].problem()
    assert line(problem, points=3, step=7).step == 7
    assert plane(problem, points=3, step=7).step == 7
