"""Parts of the data are nested, deterministic, and weigh what they weigh in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, Family, merged
from operators.plain import relative
from theodolite.errors import DataError, ProblemError
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem
from theodolite.problem.data import Batches, tensors_of

EXACT = 1e-10
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def numbered(sizes: tuple[int, ...] = (7, 7, 3)) -> list[tuple[Tensor, Tensor]]:
    """Samples whose target is their place in the data, so that parts can be read."""
    places = torch.arange(sum(sizes), dtype=torch.float64)[:, None]
    inputs = torch.randn(sum(sizes), 2, dtype=torch.float64)
    return list(zip(inputs.split(sizes), places.split(sizes), strict=True))


def problem(batches: Any = None, **options: Any) -> Problem:
    return Problem(nn.Linear(2, 1).double(), nn.MSELoss(), batches or numbered(), **options)


def places(part: Problem) -> list[int]:
    return sorted(int(place) for _, targets in part.batches for place in targets)


@all_families
@pytest.mark.parametrize("operator", [Hessian, GGN, GradientCovariance])
def test_halves_average_to_the_whole(family: Family, operator: type) -> None:
    if operator is GGN and family.criterion is None:
        pytest.skip("a GGN needs a criterion")
    whole = family.problem()
    halves = whole.split_halves(seed=3)
    shares = [half.samples / whole.samples for half in halves]
    assert [half.samples for half in halves] == [9, 8]
    if whole.objective.averages():
        weights = [half.totals()[1].sum() for half in halves]
        assert float(sum(weights)) == pytest.approx(float(whole.totals()[1].sum()), rel=1e-14)
        shares = [float(weight / sum(weights)) for weight in weights]
    assert sum(share * half.loss() for share, half in zip(shares, halves, strict=True)) == pytest.approx(
        whole.loss(), rel=1e-12
    )
    gradient = sum(share * half.gradient() for share, half in zip(shares, halves, strict=True))
    assert relative(gradient, whole.gradient()) < EXACT
    v = torch.randn(whole.n, 3, dtype=torch.float64)
    if operator is GradientCovariance:  # g_i = N w_i/W ∇: of each half relative to its own weight per sample
        scales = [(share * whole.samples / half.samples) ** 2 for share, half in zip(shares, halves, strict=True)]
        shares = [scale * half.samples / whole.samples for scale, half in zip(scales, halves, strict=True)]
    products = sum(share * (operator(half) @ v) for share, half in zip(shares, halves, strict=True))
    assert relative(products, operator(whole) @ v) < EXACT


@all_families
def test_a_part_is_the_problem_on_its_samples(family: Family) -> None:
    whole = family.problem()
    part = whole.take(6)
    (batch,) = merged(list(part.batches))
    alone = family.problem_of(whole.model, [batch])
    scale = 1.0 if whole.objective.averages() else whole.samples / 6  # a sum over a part estimates that over the whole
    assert alone.samples == part.samples == 6
    assert part.loss() == pytest.approx(scale * alone.loss(), rel=1e-12)
    assert relative(Hessian(part).dense(), scale * Hessian(alone).dense()) < EXACT


def test_parts_of_one_seed_are_nested_and_equal_at_every_call() -> None:
    whole = problem()
    taken = [places(whole.take(count)) for count in range(1, 18)]
    assert [len(part) for part in taken] == list(range(1, 18))
    assert all(set(small) < set(large) for small, large in pairwise(taken))
    assert taken == [places(whole.take(count)) for count in range(1, 18)]
    assert places(whole.take(8, seed=1)) != taken[7]
    assert taken[7] != list(range(8))  # not the first of a loader, which may be sorted
    first, second = whole.split_halves()
    assert places(first) == taken[8]
    assert sorted(places(first) + places(second)) == list(range(17))


def test_every_sample_is_taken_equally_often() -> None:
    whole = problem()
    counts = torch.zeros(17)
    for seed in range(200):
        counts[places(whole.take(5, seed=seed))] += 1
    deviations = (counts - 200 * 5 / 17) / (200 * 5 / 17 * 12 / 17) ** 0.5
    assert float(deviations.abs().max()) < 4  # standard errors


def test_all_samples_are_the_problem_itself() -> None:
    whole = problem()
    assert whole.take(17) is whole
    assert whole.take(100) is whole


def test_growing_ends_with_the_whole() -> None:
    whole = problem()
    parts = list(whole.growing(start=3))
    assert [part.samples for part in parts] == [3, 6, 12, 17]
    assert parts[-1] is whole
    assert all(set(places(small)) < set(places(large)) for small, large in pairwise(parts))
    assert [part.samples for part in whole.growing(start=2, factor=1.1)] == list(range(2, 18))
    assert [part.samples for part in whole.growing(start=20)] == [17]


def test_parts_of_parts() -> None:
    whole = problem()
    part = whole.take(12)
    for inner in (part.take(5), *part.split_halves()):
        assert set(places(inner)) < set(places(part))
    summed = Problem(nn.Linear(2, 1).double(), nn.MSELoss(reduction="sum"), numbered())
    halves = summed.take(12).split_halves()
    assert sum(half.loss() for half in halves) / 2 == pytest.approx(summed.take(12).loss(), rel=1e-12)


def test_options_and_selection_carry_over_and_the_certificate_with_them() -> None:
    whole = problem(params="weight", microbatch=2, engine="fresh")
    H = Hessian(whole)
    H @ torch.ones(2, dtype=torch.float64)
    part = whole.take(8)
    assert part.layout.names == ("weight",)
    assert part.certificates is whole.certificates
    assert part.replace(mode="train").samples == 8
    assert part.replace(mode="train").certificates == {}
    assert all(chunk.samples <= 2 for chunk in part.chunks())
    assert part.digest() != whole.digest()
    assert part.digest() == whole.take(8).digest()
    assert part.context()["samples"] == 8
    assert part.context()["drawn from"] == 17
    assert "drawn from" not in whole.context()


def test_few_samples_of_many_batches_are_few_evaluations() -> None:
    whole = problem(numbered((4,) * 50))
    assert len(list(whole.batches)) == 50
    assert len(list(whole.take(20).batches)) <= 6


def test_samples_of_other_shapes_stay_apart_and_shared_tensors_stay_whole() -> None:
    table, other = torch.randn(11, 2, dtype=torch.float64), torch.randn(11, 2, dtype=torch.float64)

    def batch(length: int, shared: Tensor) -> dict[str, Any]:
        tokens = torch.randint(3, (4, length))
        return {"tokens": tokens, "targets": torch.randn(4, 2, dtype=torch.float64), "table": shared, "kind": "a"}

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return nn.functional.mse_loss(model(batch["table"][batch["tokens"]].sum(1)), batch["targets"])

    batches = [batch(2, table), batch(3, table), batch(2, table), batch(2, other)]
    whole = Problem.from_loss(nn.Linear(2, 2).double(), loss, batches)
    halves = whole.split_halves(seed=1)
    for half in halves:
        for piece in half.batches:
            assert piece["table"] is table or piece["table"] is other
            assert piece["kind"] == "a"
    assert {piece["tokens"].shape[1] for half in halves for piece in half.batches} == {2, 3}
    assert sum(half.loss() for half in halves) / 2 == pytest.approx(whole.loss(), rel=1e-12)


class Again:
    """Makes its batches anew at every walk, as a loader does."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.walks = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        yield from (tuple(tensor.clone() for tensor in tensors_of(batch)) for batch in self.batches)


def test_a_part_of_a_loader_too_large_to_keep_is_drawn_at_its_first_walk() -> None:
    source = Again(numbered())
    whole = problem(Batches(source, keep=1))
    part = whole.take(6)
    walks, v = source.walks, torch.ones(part.n, dtype=torch.float64)
    same = Problem(part.model, nn.MSELoss(), source.batches).take(6)
    assert places(part) == places(same)
    assert relative(Hessian(part) @ v, Hessian(same) @ v) < EXACT
    assert relative(Hessian(part) @ v, Hessian(same) @ v) < EXACT
    assert (
        source.walks <= walks + 3
    )  # one walk to draw, two for the first batch of the check; then what was taken is kept


def test_coupled_samples_are_taken_by_whole_batches() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    batches = numbered((4, 4, 4, 4, 4))
    whole = Problem(model, nn.MSELoss(), batches, mode="train")
    part = whole.take(7)
    assert part.samples == 8
    assert all(any(piece is batch for batch in batches) for piece in part.batches)
    first, second = whole.split_halves()
    assert (first.samples, second.samples) == (12, 8)
    mean = 0.6 * Hessian(first).dense() + 0.4 * Hessian(second).dense()
    assert relative(mean, Hessian(whole).dense()) < EXACT
    with pytest.raises(
        DataError, match=r"two samples or more to halve, found 4 in one batch whose samples are coupled"
    ):
        Problem(model, nn.MSELoss(), batches[:1], mode="train").split_halves()


def test_what_cannot_be_taken() -> None:
    with pytest.raises(ProblemError, match=r"at least 1 sample to take, found 0"):
        problem().take(0)
    with pytest.raises(DataError, match=r"two samples or more to halve, found 1\."):
        problem(numbered((1,))).split_halves()
    with pytest.raises(ProblemError, match=r"start of at least 1 and a factor above 1, found 0 and 2.0"):
        list(problem().growing(start=0))
    with pytest.raises(ProblemError, match=r"factor above 1, found 4 and 1.0"):
        list(problem().growing(start=4, factor=1.0))
