"""Laws of coverage and even speed on the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from theodolite import losses


def arc(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)


def test_even_speed_on_a_great_circle_meets_the_bound() -> None:
    """Σ|Δs|²/Δy ≥ (Σ|Δs|)²/range, with equality iff |Δs|/Δy is constant."""
    values = torch.linspace(0, 2, 9, dtype=torch.float64)
    even = arc(values)
    length = (even[1:] - even[:-1]).norm(dim=1).sum()
    torch.testing.assert_close(losses.homogeneity(even, values), length**2 / 2)
    uneven = arc(values.square() / 2)
    length = (uneven[1:] - uneven[:-1]).norm(dim=1).sum()
    assert float(losses.homogeneity(uneven, values)) > 1.05 * float(length**2 / 2)


def test_uneven_bins_need_the_integral_form() -> None:
    values = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    steady = losses.homogeneity(arc(0.1 * values), values)  # so short that chords are arcs
    for shift in (0.05, -0.05):
        moved = arc(0.1 * (values + torch.tensor([0, 0, shift, 0], dtype=torch.float64)))
        assert float(losses.homogeneity(moved, values)) > float(steady)


def test_covering_the_sphere_envelops_more_than_a_point() -> None:
    points = losses.sphere_points(500, 3)
    assert torch.equal(points, losses.sphere_points(500, 3))
    torch.testing.assert_close(points.norm(dim=1), torch.ones(500))
    one, many = torch.tensor([[1.0, 0, 0]]), losses.sphere_points(50, 3, seed=1)
    assert float(losses.enveloping(one, points)) > 0.8
    assert float(losses.enveloping(many, points)) < 0.1
    assert float(losses.enveloping(points, points)) == pytest.approx(0.0, abs=1e-6)


def test_rotations_leave_both_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    s, u = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 40))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    values = torch.arange(6.0, dtype=torch.float64)
    for kind in ("integral", "released"):
        torch.testing.assert_close(
            losses.homogeneity(s @ turn, values, kind=kind), losses.homogeneity(s, values, kind=kind)
        )
    torch.testing.assert_close(losses.enveloping(s @ turn, u @ turn), losses.enveloping(s, u))


def test_pull_without_weights_is_cross_entropy_and_far_bins_weigh_more() -> None:
    generator = torch.Generator().manual_seed(0)
    f, s = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 4))
    bins = torch.tensor([0, 1, 2, 3, 3])
    cosines = nn.functional.normalize(f) @ nn.functional.normalize(s).T
    expected = nn.functional.cross_entropy(cosines / 0.1, bins)
    torch.testing.assert_close(losses.surrogate_pull(f, bins, s, weighted=False), expected)
    single = torch.tensor([0])
    near, far = torch.zeros(2, 4, 4, dtype=torch.float64)
    for i, other in ((near, 1), (far, 3)):
        i[0, 0] = i[other, 1] = 1
        i[4 - other, 2] = i[2, 3] = 1
    here = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)  # as close to the other bin as can be
    assert float(losses.surrogate_pull(here, single, far)) > float(losses.surrogate_pull(here, single, near))


def test_surrogates_of_missing_bins_come_from_the_last_epoch() -> None:
    memory = losses.BinSurrogates(4, 2)
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = memory(first, torch.tensor([0, 2]))
    torch.testing.assert_close(found, first)
    memory.end_epoch()
    features = torch.tensor([[3.0, 3.0]], requires_grad=True)
    found = memory(features, torch.tensor([1]))
    torch.testing.assert_close(memory.rows(torch.tensor([1])), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found.detach(), torch.tensor([[1.0, 0.0], [math.sqrt(0.5)] * 2, [0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), features)
    assert float(gradient.abs().sum()) > 0
    memory.eval()
    memory(features.detach(), torch.tensor([3]))
    memory.end_epoch()
    assert memory.known.tolist() == [True, True, True, False]  # a batch in evaluation leaves no trace


@pytest.mark.slow
def test_geometry_helps_the_rare_values_of_an_imbalanced_regression() -> None:
    """The few-shot half of a noisy curve is predicted better with coverage, even speed and pull than without.

    Most of it is the pull's work: coverage and even speed with weights as large as its own raise the error of this toy.
    """
    errors: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        y = torch.cat([torch.rand(400, generator=generator), 1 + torch.rand(12, generator=generator)])
        turn = torch.randn(2, 10, generator=generator)

        def observed(y: Tensor, turn: Tensor = turn, generator: torch.Generator = generator) -> Tensor:
            curve = torch.stack([torch.sin(2 * y), torch.cos(3 * y)], 1) @ turn
            return curve + 0.3 * torch.randn(len(y), 10, generator=generator)

        x, test_y = observed(y), 1 + torch.rand(500, generator=generator)
        test_x = observed(test_y)
        for geometric in errors:
            torch.manual_seed(seed)
            trunk, head = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 8)), nn.Linear(8, 1)
            memory, points = losses.BinSurrogates(10, 8), losses.sphere_points(500, 8)
            centres = torch.linspace(0.1, 1.9, 10)
            optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=3e-3)
            for _ in range(300):
                optimizer.zero_grad()
                features = nn.functional.normalize(trunk(x), dim=1)
                bins = (y * 5).long().clamp(max=9)
                loss = (head(features)[:, 0] - y).abs().mean()
                if geometric:
                    s = memory(features, bins)
                    there = memory.rows(bins)
                    within = torch.searchsorted(there, bins)
                    loss = loss + 1e-3 * losses.enveloping(s, points) + 1e-3 * losses.homogeneity(s, centres[there])
                    loss = loss + 0.1 * losses.surrogate_pull(features, within, s)
                loss.backward()
                optimizer.step()
                memory.end_epoch()
            with torch.no_grad():
                found = head(nn.functional.normalize(trunk(test_x), dim=1))[:, 0]
            errors[geometric].append(float((found - test_y).abs().mean()))
    gains = torch.tensor(errors[False]) - torch.tensor(errors[True])
    assert float(gains.mean()) > 2 * float(gains.std() / math.sqrt(len(gains))), errors
