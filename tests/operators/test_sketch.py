"""Sketches keep inner products with the variance of the closed form; those of samples are sketches of their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, Family, merged
from theodolite.errors import OperatorError, ProblemError
from theodolite.operators import CountSketch
from theodolite.operators.capture import sample_gram
from theodolite.operators.sample_sketch import sample_sketch
from theodolite.problem import Problem
from theodolite.problem.data import split


def vectors(n: int = 400, seed: int = 3) -> Tensor:
    """Two vectors with unequal entries, of cosine 0.5 or so, and one with a single entry."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, n, generator=generator, dtype=torch.float64) * torch.linspace(0, 2, n, dtype=torch.float64)
    rows[1] += 0.6 * rows[0]
    rows[2] = 0.0
    rows[2, 7] = 3.0
    return rows


def test_inner_products_have_the_mean_and_the_variance_of_the_closed_form() -> None:
    rows, size, draws = vectors(), 16, 2000
    products = []
    for seed in range(draws // 10):
        found = CountSketch(size=size, repeats=10, seed=seed)(rows)
        products.append(torch.einsum("ird,jrd->rij", found, found))
    drawn = torch.cat(products)
    dots, squares = rows @ rows.T, rows.square()
    lengths = squares.sum(1)
    variance = (torch.outer(lengths, lengths) + dots.square() - 2 * squares @ squares.T) / size
    spread = variance.sqrt() / draws**0.5
    assert ((drawn.mean(0) - dots).abs() <= 4 * spread + 1e-9).all()
    # Heavy-tailed products: the relative error of their variance is about √(kurtosis/draws), 5 % here.
    assert torch.allclose(drawn.var(0), variance, rtol=0.2, atol=1e-9)
    assert drawn[:, 2, 2].var() < 1e-18  # a single entry collides with nothing


def test_repeats_are_independent_and_seeds_differ() -> None:
    rows = vectors(2000)[:2]
    found = CountSketch(size=64, repeats=400, seed=0)(rows)
    errors = torch.einsum("rd,rd->r", found[0], found[1]) - rows[0] @ rows[1]
    between = (errors[:-1] * errors[1:]).mean() / errors.square().mean()
    assert abs(float(between)) < 4 / 399**0.5
    assert torch.equal(found, CountSketch(size=64, repeats=400, seed=0)(rows))
    other = CountSketch(size=64, repeats=400, seed=1)(rows)
    assert not any(torch.equal(found[0, i], other[0, j]) for i in range(5) for j in range(5))


def test_buckets_and_signs_are_even() -> None:
    sketch = CountSketch(size=7, repeats=20, seed=5)
    counts = sketch(torch.eye(1000, dtype=torch.float64)).abs().sum((0, 1))
    expected = 20_000 / 7
    assert float((counts - expected).square().sum() / expected) < 22.5  # χ² with 6 degrees of freedom, 0.1 %
    signs = CountSketch(size=1, repeats=1)(torch.ones(1, 100_000, dtype=torch.float64))
    assert abs(float(signs)) < 4 * 100_000**0.5


def test_a_sketch_is_linear_and_does_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sketch = vectors(), CountSketch(size=32, repeats=2, seed=1)
    whole = sketch(rows)
    torch.testing.assert_close(sketch((2 * rows[0] - rows[1])[None])[0], 2 * whole[0] - whole[1])
    monkeypatch.setattr("theodolite.operators.count_sketch.PIECE", 37)
    torch.testing.assert_close(sketch(rows), whole)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8, "repeats": 0}])
def test_sizes_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ProblemError, match="Expected a positive size and number of repeats"):
        CountSketch(**options)


# ------------------------------------------------------------------------------------------------- of samples


def rows_of(family: Family, problem: Problem) -> Tensor:
    """Gradients of problems of one sample each, scaled so that their mean is the gradient of the whole."""
    denominator = problem.total_weight(problem.totals()[1])
    rows = []
    for sample in split(merged(family.batches())[0], 1):
        one = family.problem_of(problem.model, [sample])
        weight = float(one.totals()[1].sum())
        scale = one.total_weight(torch.tensor([weight])) if weight else 0.0
        rows.append(one.gradient() * scale if weight else torch.zeros(problem.n, dtype=torch.float64))
    return torch.stack(rows) * problem.samples / denominator


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_sketches_of_samples_are_those_of_their_gradients(family: Family) -> None:
    problem, sketch = family.problem(), CountSketch(size=48, repeats=2, seed=4)
    rows = rows_of(family, problem)
    found = sample_sketch(problem, sketch)
    scale = float(rows.abs().max())
    torch.testing.assert_close(found.sketches, sketch(rows), rtol=1e-10, atol=1e-10 * scale)
    start = 0
    for block in found.blocks:
        mine = rows[start : start + len(block)]
        torch.testing.assert_close(block, mine @ mine.T, rtol=1e-9, atol=1e-10 * scale**2)
        start += len(block)
    assert start == problem.samples
    assert found.coverage == pytest.approx((1, 1), abs=1e-8)


class Tied(nn.Module):
    """An embedding that is the output layer too, a scalar, and products in place, which go through the fallback."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.bend = nn.Parameter(torch.linspace(0.5, 1.5, 4))
        self.tilt = nn.Parameter(torch.linspace(1.0, 0.2, 4))
        self.scalar = nn.Parameter(torch.tensor(0.7))

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.table(tokens).cumsum(1)[:, -1] * self.scalar)
        return nn.functional.linear((h + 0.0).mul_(self.bend).mul_(self.tilt), self.table.weight)


@pytest.mark.parametrize("memory", [None, 1], ids=["together", "one after the other"])
def test_tied_tables_scalars_and_what_goes_through_the_fallback(memory: int | None) -> None:
    torch.manual_seed(0)
    model = Tied().double()
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(9, (6, 5), generator=generator), torch.randint(9, (6,), generator=generator)
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model, criterion, [(tokens, targets)], memory=memory)
    rows = torch.stack(
        [Problem(model, criterion, [(tokens[i : i + 1], targets[i : i + 1])]).gradient() for i in range(6)]
    )
    sketch = CountSketch(size=16, repeats=3)
    found = sample_sketch(problem, sketch)
    assert [name for name, method in sample_gram(problem).methods.items() if method == "fallback"] == ["bend", "tilt"]
    torch.testing.assert_close(found.sketches, sketch(rows), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.blocks[0], rows @ rows.T, rtol=1e-10, atol=1e-12)


def test_coupled_samples_are_refused_and_the_model_is_undisturbed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    batch = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OperatorError, match="BatchNorm on batch statistics"):
        sample_sketch(Problem(model, nn.CrossEntropyLoss(), [batch], mode="train"), CountSketch(size=8))
    sample_sketch(Problem(model, nn.CrossEntropyLoss(), [batch]), CountSketch(size=8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
