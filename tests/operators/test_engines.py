"""Engines, memory cap and notes: how a product is computed never changes it, and is said."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from operators.plain import relative
from theodolite.errors import CostWarning, OperatorError
from theodolite.operators import GGN, Hessian
from theodolite.operators.certificate import first_piece
from theodolite.problem import Problem


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(batches: int = 6, size: int = 20) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 5, dtype=torch.float64), torch.randint(3, (size,))) for _ in range(batches)]


def problem(**options: Any) -> Problem:
    return Problem(net(), nn.CrossEntropyLoss(), data(), **options)


def bytes_per_batch(found: Problem) -> int:
    H = Hessian(found.replace(memory=2**40))
    H @ torch.ones(found.n, dtype=torch.float64)
    assert H.certificate is not None
    return int(20 * H.certificate.bytes_per_sample)


@pytest.mark.parametrize("fit", [0, 1, 3, 6])
def test_graphs_kept_over_many_products_stay_under_the_cap(fit: int) -> None:
    base = problem()
    cap = max(1, int((fit + 0.5) * bytes_per_batch(base)))
    H, v = Hessian(base.replace(memory=cap)), torch.randn(base.n, dtype=torch.float64)
    first = H @ v
    built = [H.gradients]
    for _ in range(3):
        assert relative(H @ v, first) < 1e-12
        built.append(H.gradients)
    # What was not kept in the first product is built again in each later one, no less and no more.
    again = [later - earlier for earlier, later in pairwise(built)]
    assert again == pytest.approx([(6 - fit) / 6] * 3)
    assert ("retained graphs" in H.engine) == (fit == 6)


@pytest.mark.parametrize("engine", ["retained", "vmap"])
def test_an_engine_that_keeps_everything_warns_once_beyond_the_cap(engine: Any) -> None:
    H = Hessian(problem(engine=engine, memory=1000))
    V = torch.randn(H.shape[0], 2, dtype=torch.float64)
    with pytest.warns(CostWarning, match=r"above the cap.*engine='auto', or raise memory=") as caught:
        H @ V
    assert len(caught) == 1
    H @ V
    assert H.gradients == pytest.approx(1.0)


def test_fresh_graphs_are_never_kept() -> None:
    H = Hessian(problem(engine="fresh"))
    v = torch.randn(H.shape[0], dtype=torch.float64)
    for count in (1, 2, 3):
        H @ v
        assert H.gradients == pytest.approx(count)
    assert "rebuilt at each product" in H.engine


@pytest.mark.parametrize("columns", [1, 4, 5, 33])
@pytest.mark.parametrize("engine", ["auto", "vmap", "retained", "fresh"])
def test_blocks_of_any_width_equal_their_columns(columns: int, engine: Any) -> None:
    H = Hessian(Problem(net(), nn.CrossEntropyLoss(), data(2), engine=engine))
    V = torch.randn(H.shape[0], columns, dtype=torch.float64)
    one = Hessian(H.problem.replace(engine="retained"))
    assert relative(H @ V, torch.stack([one @ v for v in V.T], dim=1)) < 1e-12
    assert H.products == columns


@pytest.mark.parametrize("memory", [1, 10_000, 2**40])
def test_the_width_of_a_block_follows_the_memory(memory: int) -> None:
    H = Hessian(problem(engine="auto", memory=memory))
    V = torch.randn(H.shape[0], 40, dtype=torch.float64)
    H @ V
    chunk = next(iter(H.problem.chunks()))
    assert H._width(chunk) == {1: 1, 2**40: 32}.get(memory, H._width(chunk))
    each = max(20 * H.certificate.bytes_per_sample, 8 * H.shape[0])
    assert H._width(chunk) == 1 or H._width(chunk) * each <= memory


def test_the_trial_is_made_once_and_said() -> None:
    H = Hessian(problem())
    V = torch.randn(H.shape[0], 6, dtype=torch.float64)
    H @ V[:, 0]
    assert H.blocks == "not yet tried"
    H @ V
    said = H.blocks
    assert said.startswith(("loop, since vmap took", "vmap, since vmap took"))
    H @ V
    assert H.blocks == said
    assert H.notes == []


class Branches(torch.autograd.Function):
    """x² whose backward looks at its values, which vmap forbids."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return Doubled.apply(gradient, x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, x)
        return 2 * gradient * x

    @staticmethod
    def backward(ctx: Any, vector: Tensor) -> tuple[Tensor, Tensor]:
        gradient, x = ctx.saved_tensors
        if float(vector.abs().sum()) == 0.0:
            return torch.zeros_like(gradient), torch.zeros_like(x)
        return 2 * vector * x, 2 * vector * gradient


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Branches.apply(x)


def stubborn() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), Square(), nn.Linear(4, 3)).double()


def test_where_vmap_fails_the_loop_takes_over_with_a_note() -> None:
    found = Problem(stubborn(), nn.CrossEntropyLoss(), data())
    H, V = Hessian(found), torch.randn(found.n, 6, dtype=torch.float64)
    one = Hessian(found.replace(engine="retained"))
    assert relative(H @ V, torch.stack([one @ v for v in V.T], dim=1)) < 1e-12
    assert H.notes[0].startswith("blocks by loop: vmap failed with")
    assert H.blocks == "loop"


def test_vmap_asked_for_where_it_fails_names_the_way_out() -> None:
    found = Problem(stubborn(), nn.CrossEntropyLoss(), data(), engine="vmap")
    with pytest.raises(OperatorError, match=r"engine='vmap'.*failed with RuntimeError.*engine='retained'"):
        Hessian(found) @ torch.randn(found.n, 6, dtype=torch.float64)


def test_a_wrong_product_is_not_hidden_by_a_failing_trial() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not a missing derivative")

    found = Problem(nn.Sequential(nn.Linear(5, 3), Broken()).double(), nn.CrossEntropyLoss(), data())
    with pytest.raises(RuntimeError, match="not a missing derivative"):
        Hessian(found) @ torch.ones(found.n, 6, dtype=torch.float64)


def test_costs_are_counted() -> None:
    H = GGN(problem())
    H @ torch.ones(H.shape[0], 3, dtype=torch.float64)
    H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert H.cost.products == H.products == 4
    assert H.cost.gradients == pytest.approx(1.0)
    assert H.cost.seconds == H.seconds > 0


def test_the_first_piece_is_small() -> None:
    for size, samples in ((1, 1), (3, 2), (20, 5), (48, 12), (100, 16)):
        assert first_piece(Problem(net(), nn.CrossEntropyLoss(), data(size=size))).samples == samples


def test_coupled_samples_are_certified_by_more() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    assert first_piece(Problem(model, nn.CrossEntropyLoss(), data(size=20), mode="train")).samples == 8


def test_differences_cost_no_graphs_and_need_no_certificate() -> None:
    H = Hessian(problem(engine="difference"))
    v = torch.randn(H.shape[0], dtype=torch.float64)
    exact = Hessian(H.problem.replace(engine="auto")) @ v
    assert relative(H @ v, exact) < 1e-6
    assert H.certificate is None
    assert torch.count_nonzero(H @ torch.zeros_like(v)) == 0
    assert H.engine.startswith("central differences")
